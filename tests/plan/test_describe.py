"""The plan as text says the numbers people look for."""

from tests.plan.test_plan import GPU, config
from vitscale.plan.describe import describe_plan
from vitscale.plan.plan import make_plan


def test_the_text_names_sizes_batch_and_reasons() -> None:
    plan = make_plan(config(), cluster=GPU)
    text = describe_plan(plan)
    assert "5,717,416" in text
    assert "8 ranks x 128 images x 1 accumulated" in text
    assert "8 x cuda, bf16, ZeRO stage 1" in text
    for reason in plan.reasons:
        assert reason in text
