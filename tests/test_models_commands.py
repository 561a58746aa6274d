import json

from typer.testing import CliRunner

from vitscale.cli import app


def test_lists_models_with_their_costs() -> None:
    result = CliRunner().invoke(app, ["models", "--only", "DeiT-distilled-Ti"])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[1].split() == ["DeiT-distilled-Ti/16", "vit", "5.52", "M", "2.52", "198", "224"]


def test_as_json_at_another_size() -> None:
    result = CliRunner().invoke(app, ["models", "--only", "S/16", "--image-size", "384", "--json"])
    found = {entry["name"]: entry for entry in json.loads(result.output)}
    assert (found["S/16"]["num_tokens"], found["S/16"]["image_size"]) == (577, 384)


def test_an_unknown_name_is_told() -> None:
    result = CliRunner().invoke(app, ["models", "--only", "resnet"])
    assert result.exit_code == 2
    assert "no model's name contains 'resnet'" in result.output
