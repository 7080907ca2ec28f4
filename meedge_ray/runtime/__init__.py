"""What a device needs and nothing more: engine, profiler, placing, the client of the server."""
