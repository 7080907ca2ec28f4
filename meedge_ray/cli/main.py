"""`meedge`: build an elastic model, look into it, place it, run it, serve it; run the operator, and declare.

Exit codes: 0 it worked, 1 it failed, 2 it was used wrongly.
"""

import sys

import typer

from meedge_ray.cli import (
    adapting,
    agent,
    applying,
    bundles,
    describing,
    doctor,
    explaining,
    job_logs,
    operator_status,
    operator_up,
    placing,
    serving,
    showing,
    waiting,
)
from meedge_ray.domain.errors import MeedgeError

app = typer.Typer(
    name="meedge",
    help="Neural networks that keep answering when their memory and their processor are taken away.",
    epilog="Start with: meedge build examples/01-digits/model.yaml -o digits",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(bundles.build)
app.command()(bundles.inspect)
app.command()(placing.place)
app.command()(bundles.infer)
app.command()(bundles.evaluate)
app.command()(adapting.adapt)
app.command()(serving.serve)
app.add_typer(agent.app)
app.command()(operator_up.up)
app.command()(operator_up.down)
app.command()(operator_status.status)
app.command()(operator_status.kubeconfig)
app.command()(applying.apply)
app.command()(showing.get)
app.command()(describing.describe)
app.command()(applying.delete)
app.command()(waiting.wait)
app.command()(job_logs.logs)
app.command()(describing.events)
app.command()(explaining.explain)
app.command()(doctor.doctor)


def main() -> None:
    """Run the command; a user's mistake becomes one clear line, never a traceback."""
    try:
        app()
    except MeedgeError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; a build goes on from here when it is run again\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
