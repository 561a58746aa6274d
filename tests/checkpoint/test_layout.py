"""Names of checkpoint folders, and the order in which they are looked at."""

from pathlib import Path

from vitscale.checkpoint.layout import list_step_folders, parse_step_folder, rank_file, save_folder, step_folder


def test_names_are_those_of_the_documented_layout() -> None:
    assert step_folder(Path("c"), step=1000) == Path("c/step-00001000")
    assert step_folder(Path("c"), step=1000, role="partial") == Path("c/step-00001000.tmp")
    assert step_folder(Path("c"), step=123_456_789) == Path("c/step-123456789")
    assert rank_file(7) == "rank-00007.safetensors"


def test_folders_are_listed_newest_first_and_anything_else_is_left_out(tmp_path: Path) -> None:
    for name in ("step-00000002", "step-00000010.tmp", "step-00000010.replaced", "step-00000010", "step-5", "notes", "step-00000003.bak"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000099").write_text("a file, not a folder")

    found = [(entry.step, entry.role) for entry in list_step_folders(tmp_path)]

    assert found == [(10, "committed"), (10, "replaced"), (10, "partial"), (2, "committed")]


def test_steps_beyond_eight_digits_stay_in_order(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        step_folder(tmp_path, step=step).mkdir()
    assert [entry.step for entry in list_step_folders(tmp_path)] == [100_000_000, 99_999_999]


def test_a_missing_directory_has_no_folders(tmp_path: Path) -> None:
    assert list_step_folders(tmp_path / "none") == []


def test_a_name_says_step_and_role() -> None:
    for name in ("step-00000012.tmp", "step-00000012.tmp-0a1b2c3d"):
        found = parse_step_folder(Path("any") / name)
        assert found is not None
        assert (found.step, found.role, found.path.name) == (12, "partial", name)
    others = ("step-12", "step-00000012.bak", "xstep-00000012", "step-00000012/..", "step-00000012-0a", "step-00000012.replaced-0a")
    assert [parse_step_folder(Path(name)) for name in others] == [None] * len(others)


def test_every_save_has_a_folder_of_its_own() -> None:
    first, second = (save_folder(Path("c"), step=12) for _ in range(2))
    assert first != second
    found = parse_step_folder(first)
    assert found is not None
    assert (found.step, found.role, first.parent) == (12, "partial", Path("c"))
