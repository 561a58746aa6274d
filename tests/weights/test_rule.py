"""Rules of a module's weight and bias, of one tensor, of class token and positions."""

from vitscale.weights.forms import SAME, TOKEN_AND_TABLE, TRANSPOSED, split_at
from vitscale.weights.rule import CLASS_TOKEN, POSITIONS, Rule, both, one, token_and_table


def test_a_module_has_a_weight_and_a_bias() -> None:
    assert both("head", "out", form=TRANSPOSED, ends=("/kernel", "/bias")) == [
        Rule(ours=("head.weight",), theirs=("out/kernel",), form=TRANSPOSED),
        Rule(ours=("head.bias",), theirs=("out/bias",), form=SAME),
    ]


def test_several_modules_become_one() -> None:
    form = split_at(1, 2)
    weight, bias = both(("q", "kv"), "in_proj", form=form, bias_form=form, ends=("_weight", "_bias"))
    assert (weight.ours, weight.theirs) == (("q.weight", "kv.weight"), ("in_proj_weight",))
    assert (bias.ours, bias.theirs) == (("q.bias", "kv.bias"), ("in_proj_bias",))


def test_class_token_and_positions_go_together_where_both_are_there() -> None:
    together, token, table = token_and_table("cls", "pos")
    assert (together.ours, together.form) == ((CLASS_TOKEN, POSITIONS), TOKEN_AND_TABLE)
    assert (token, table) == (one(CLASS_TOKEN, "cls"), one(POSITIONS, "pos"))
