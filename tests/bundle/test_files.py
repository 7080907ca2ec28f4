from meedge_ray.bundle.files import write_atomically


def mode_of(path):
    return path.stat().st_mode & 0o777


def test_a_private_file_and_the_folder_made_for_it_are_ours_alone(tmp_path):
    path = tmp_path / "tokens" / "admin"
    write_atomically(path, b"secret", private=True)
    assert (mode_of(path), mode_of(path.parent), path.read_bytes()) == (0o600, 0o700, b"secret")
    write_atomically(tmp_path / "open", b"")
    assert mode_of(tmp_path / "open") & 0o400


def test_a_private_file_that_others_could_read_is_so_no_more(tmp_path):
    path = tmp_path / "token"
    path.write_bytes(b"old")
    path.chmod(0o644)
    write_atomically(path, b"new", private=True)
    assert (mode_of(path), path.read_bytes()) == (0o600, b"new")
