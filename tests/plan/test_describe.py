"""The plan as text says the numbers people look for."""

from tests.plan.test_plan import GPU, config
from vitscale.config import parse_yaml
from vitscale.plan.describe import describe_plan, describe_run
from vitscale.plan.plan import make_plan


def test_the_text_names_sizes_batch_and_reasons() -> None:
    plan = make_plan(config(), cluster=GPU)
    text = describe_plan(plan)
    assert "5,717,416" in text
    assert "8 ranks x 128 images x 1 accumulated" in text
    assert "8 x cuda, bf16, ZeRO stage 1" in text
    for reason in plan.reasons:
        assert reason in text


def test_what_is_offloaded_is_shown_beside_the_device() -> None:
    text = describe_plan(make_plan(config("parallel.offload_optimizer=true"), cluster=GPU))
    assert "on the host" in text
    assert "on the host" not in describe_plan(make_plan(config(), cluster=GPU))


def test_a_run_is_described_as_it_would_be_recorded() -> None:
    plan = make_plan(config(), cluster=GPU)
    shown, _, rest = describe_run(config(), plan=plan).partition("---\n")
    values = parse_yaml(shown, source="shown")
    assert (values["data"]["lanes"], values["parallel"]["precision"]) == (256, "bf16")
    assert rest == describe_plan(plan)
