from meedge_ray.runtime.memory import release_to_os, rss_bytes


def test_resident_memory_follows_what_is_held():
    before = rss_bytes()
    held = bytearray(b"x") * 50_000_000
    assert rss_bytes() - before > 40_000_000
    del held
    release_to_os()
    assert rss_bytes() - before < 40_000_000
