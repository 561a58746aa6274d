import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitscale.config import ConfigError, decode
from vitscale.data.images.transforms import TrainTransform
from vitscale.data.labels import ClassTarget, MultiTarget
from vitscale.data.types import InputSpec
from vitscale.dist.seeding import CounterRng
from vitscale.models import ViTConfig
from vitscale.models.flops import step_flops
from vitscale.nn.counter_hash import SEED_KEY, SeedSource
from vitscale.nn.init import materialise
from vitscale.objectives import ObjectiveConfig, Supervised, SupervisedConfig
from vitscale.objectives.draws import WithDraws
from vitscale.objectives.erasing import ERASE_KEY, ErasingConfig
from vitscale.objectives.mixing import MIX_KEY, own_label_shares, soft_targets
from vitscale.objectives.supervised import is_right

MODEL = ViTConfig(variant="mu/8", image_size=16, num_channels=1)
NUM_CLASSES = 5


def built(**settings: object) -> Supervised:
    config = SupervisedConfig.model_validate({"num_classes": NUM_CLASSES, **settings})
    with torch.device("meta"):
        objective = config.build(MODEL.build())
    materialise(objective, seed=0)
    return objective


def with_random_head(objective: Supervised) -> Supervised:
    torch.nn.init.normal_(objective.head.fc.weight, generator=torch.Generator().manual_seed(0))
    return objective


def batch(count: int = 8, *, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = SupervisedConfig(num_classes=NUM_CLASSES, mixup_alpha=0.8, cutmix_alpha=1.0).mixing
    return {
        "image": torch.randint(0, 256, (count, 1, 16, 16), dtype=torch.uint8, generator=generator),
        "label": torch.randint(0, NUM_CLASSES, (count,), generator=generator),
        MIX_KEY: torch.stack([torch.from_numpy(mixing.draw(CounterRng(i), image_size=16)) for i in range(count)]),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_loss_equals_the_mean_of_negative_log_probabilities(smoothing: float) -> None:
    objective, samples = with_random_head(built(label_smoothing=smoothing)), batch()
    log_p = objective.predict(samples).log_softmax(dim=1)
    target = F.one_hot(samples["label"], NUM_CLASSES) * (1 - smoothing) + smoothing / NUM_CLASSES
    torch.testing.assert_close(objective(samples, 0).loss, -(target * log_p).sum(1).mean())


def test_sigmoid_loss_equals_torchs_binary_cross_entropy_summed_over_classes() -> None:
    objective, samples = with_random_head(built(loss="sigmoid")), batch()
    target = F.one_hot(samples["label"], NUM_CLASSES).double()
    # fp64, because a probability near 1 has lost the digits that its loss is made of.
    expected = F.binary_cross_entropy(objective.predict(samples).double().sigmoid(), target) * NUM_CLASSES
    torch.testing.assert_close(objective(samples, 0).loss.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("settings", [{"loss": "softmax", "label_smoothing": 0.1}, {"loss": "sigmoid"}])
def test_mixed_loss_is_the_weighted_loss_of_both_labels(settings: dict) -> None:
    objective, samples = with_random_head(built(mixup_alpha=0.8, cutmix_alpha=1.0, **settings)), batch()
    seen = []
    objective.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    output = objective(samples, 0)
    logits = objective.head(objective.backbone(seen[0]).pooled_BD)
    share_B = own_label_shares(samples[MIX_KEY], height=16, width=16)
    assert (share_B < 1).any()

    def loss_of(label_B: torch.Tensor) -> torch.Tensor:
        if settings["loss"] == "softmax":
            return F.cross_entropy(logits, label_B, label_smoothing=0.1, reduction="none")
        return F.binary_cross_entropy_with_logits(logits, F.one_hot(label_B, NUM_CLASSES).float(), reduction="none").sum(1)

    partner_B = samples["label"].view(-1, 2).flip(1).flatten()
    expected = (share_B * loss_of(samples["label"]) + (1 - share_B) * loss_of(partner_B)).mean()
    torch.testing.assert_close(output.loss, expected)
    dominant = soft_targets(samples["label"], share_B, num_classes=NUM_CLASSES).argmax(1)
    torch.testing.assert_close(output.metrics["train_top1"], (logits.argmax(1) == dominant).float().mean())


def several_labels(count: int = 8) -> dict[str, torch.Tensor]:
    """A batch whose samples have 0, 1, 2, ... labels."""
    samples = batch(count)
    del samples["label"]
    hot = torch.arange(NUM_CLASSES).unsqueeze(0) < (torch.arange(count) % 4).unsqueeze(1)
    return {**samples, "labels": hot.to(torch.uint8)}


def test_the_loss_of_several_labels_is_torchs_binary_cross_entropy() -> None:
    objective, samples = with_random_head(built(loss="sigmoid", labels={"kind": "multi"})), several_labels()
    assert objective.batch_keys == {"image", "labels"}
    output = objective(samples, 0)
    logits = objective.predict(samples)
    expected = F.binary_cross_entropy(logits.double().sigmoid(), samples["labels"].double()) * NUM_CLASSES
    torch.testing.assert_close(output.loss.double(), expected, rtol=1e-6, atol=0)
    right = [bool(labels[guess]) for labels, guess in zip(samples["labels"], logits.argmax(1), strict=True)]
    assert output.metrics["train_top1"].item() == sum(right) / len(right)


def test_one_label_as_several_is_the_same_loss() -> None:
    samples = batch()
    several = {"image": samples["image"], "labels": F.one_hot(samples["label"], NUM_CLASSES).to(torch.uint8), MIX_KEY: samples[MIX_KEY]}
    for settings in ({}, {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}):
        one = with_random_head(built(loss="sigmoid", **settings))
        any_number = with_random_head(built(loss="sigmoid", labels={"kind": "multi"}, **settings))
        torch.testing.assert_close(any_number(several, 0).loss, one(samples, 0).loss)
        assert any_number(several, 0).metrics["train_top1"] == one(samples, 0).metrics["train_top1"]


def test_mixed_loss_of_several_labels_is_the_weighted_loss_of_both() -> None:
    objective = with_random_head(built(loss="sigmoid", labels={"kind": "multi"}, mixup_alpha=0.8, cutmix_alpha=1.0))
    samples, seen = several_labels(), []
    objective.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    loss = objective(samples, 0).loss
    logits = objective.head(objective.backbone(seen[0]).pooled_BD)
    share_B = own_label_shares(samples[MIX_KEY], height=16, width=16)
    own_BK = samples["labels"].float()
    other_BK = own_BK.view(-1, 2, NUM_CLASSES).flip(1).flatten(0, 1)
    own_B, other_B = (F.binary_cross_entropy_with_logits(logits, hot, reduction="none").sum(1) for hot in (own_BK, other_BK))
    torch.testing.assert_close(loss, (share_B * own_B + (1 - share_B) * other_B).mean())


def test_a_sample_without_labels_is_never_right() -> None:
    assert is_right(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([[0, 0], [1, 1]])).tolist() == [False, True]
    assert is_right(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([[0.6, 0.4], [0.5, 0.5]])).tolist() == [False, True]


def test_several_labels_need_the_sigmoid_loss() -> None:
    with pytest.raises(ConfigError, match=r"labels: kind multi needs the sigmoid loss"):
        decode(ObjectiveConfig, values={"num_classes": 5, "labels": {"kind": "multi"}}, source="test.yaml")


def test_labels_of_foreign_sets_are_read_where_the_configuration_says() -> None:
    inputs = InputSpec(image_size=16, num_channels=1)
    config = SupervisedConfig.model_validate({"num_classes": 5, "labels": {"kind": "class", "member": "json", "field": "label"}})
    assert config.sample_transform(inputs).targets == ClassTarget(member="json", field="label", num_classes=5)
    several = SupervisedConfig.model_validate({"num_classes": 5, "loss": "sigmoid", "labels": {"kind": "multi"}})
    assert several.sample_transform(inputs).targets == MultiTarget(num_classes=5)


def test_mixed_gradient_of_a_batch_is_the_mean_over_its_halves() -> None:
    objective, samples = with_random_head(built(mixup_alpha=0.8, cutmix_alpha=1.0)), batch()

    def gradients(part: slice) -> list[torch.Tensor]:
        objective.zero_grad()
        objective({key: value[part] for key, value in samples.items()}, 0).loss.backward()
        return [parameter.grad.clone() for parameter in objective.parameters()]

    whole, first, second = gradients(slice(0, 8)), gradients(slice(0, 4)), gradients(slice(4, 8))
    for a, b, c in zip(whole, first, second, strict=True):
        torch.testing.assert_close(a, (b + c) / 2, rtol=1e-4, atol=1e-6)


def test_odd_batch_cannot_be_mixed() -> None:
    with pytest.raises(ValueError, match="3 is odd"):
        built(mixup_alpha=0.2)(batch(3), 0)


def test_train_top1_is_the_share_of_right_answers() -> None:
    objective, samples = with_random_head(built()), batch()
    expected = (objective.predict(samples).argmax(1) == samples["label"]).float().mean()
    metric = objective(samples, 0).metrics["train_top1"]
    assert metric == expected
    assert not metric.requires_grad


@pytest.mark.parametrize(("settings", "loss"), [({}, math.log(5)), ({"loss": "sigmoid"}, math.log(6) + 4 * math.log(6 / 5))])
def test_first_loss_is_that_of_knowing_nothing(settings: dict, loss: float) -> None:
    assert built(**settings)(batch(), 0).loss.item() == pytest.approx(loss, rel=1e-5)


def test_head_bias_starts_where_it_is_told() -> None:
    assert built(head_bias_init=-10.0).head.fc.bias.tolist() == [-10.0] * NUM_CLASSES
    assert built().head.fc.bias.tolist() == [0.0] * NUM_CLASSES
    assert built(loss="sigmoid").head.fc.bias.tolist() == pytest.approx([-math.log(NUM_CLASSES)] * NUM_CLASSES)


@pytest.mark.parametrize("settings", [{}, {"mixup_alpha": 0.2}, {"loss": "sigmoid", "pre_logits": 6}])
def test_every_parameter_gets_a_gradient(settings: dict) -> None:
    objective = with_random_head(built(**settings))
    objective(batch(), 0).loss.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("settings", [{"label_smoothing": 0.1}, {"loss": "sigmoid"}])
def test_learns_one_batch_by_heart(settings: dict) -> None:
    objective, samples = built(**settings), batch()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        output = objective(samples, step)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    assert (objective.predict(samples).argmax(1) == samples["label"]).all()
    assert losses[-1] < 0.5 * losses[0]


def test_bf16_weights_give_an_fp32_loss_and_fp32_logits() -> None:
    objective, samples = with_random_head(built(mixup_alpha=0.2)), batch()
    exact = objective(samples, 0).loss
    objective.to(torch.bfloat16)
    output = objective(samples, 0)
    assert (output.loss.dtype, objective.predict(samples).dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(output.loss, exact, rtol=2e-2, atol=0)


def test_predict_needs_only_images() -> None:
    objective, samples = with_random_head(built(mixup_alpha=0.2)), batch(3)
    logits = objective.predict({"image": samples["image"]})
    expected = objective.head(objective.backbone((samples["image"] / 255 - 0.5) / 0.5).pooled_BD)
    torch.testing.assert_close(logits, expected)


def test_declares_the_keys_it_reads() -> None:
    plain, mixed = built(), built(cutmix_alpha=1.0)
    assert plain.batch_keys == {"image", "label"}
    assert mixed.batch_keys == {"image", "label", MIX_KEY}
    plain({key: batch()[key] for key in plain.batch_keys}, 0)
    mixed({key: batch()[key] for key in mixed.batch_keys}, 0)


def test_mixing_needs_even_micro_batches_and_wraps_the_transform() -> None:
    plain, mixed = SupervisedConfig(num_classes=2), SupervisedConfig(num_classes=2, mixup_alpha=0.2)
    assert (plain.micro_batch_multiple, mixed.micro_batch_multiple) == (1, 2)
    inner = TrainTransform(image_size=16, num_channels=1, augment=plain.augment, targets=ClassTarget(num_classes=2))
    inputs = InputSpec(image_size=16, num_channels=1)
    assert plain.sample_transform(inputs) == inner
    assert mixed.sample_transform(inputs) == WithDraws(transform=inner, key=MIX_KEY, source=mixed.mixing, image_size=16)


def test_erasing_wraps_the_transform_inside_mixing() -> None:
    erasing = ErasingConfig(probability=0.5)
    config = SupervisedConfig(num_classes=2, erasing=erasing, mixup_alpha=0.2)
    inputs = InputSpec(image_size=16, num_channels=1)
    inner = TrainTransform(image_size=16, num_channels=1, augment=config.augment, targets=ClassTarget(num_classes=2))
    erased = WithDraws(transform=inner, key=ERASE_KEY, source=erasing, image_size=16)
    assert config.sample_transform(inputs) == WithDraws(transform=erased, key=MIX_KEY, source=config.mixing, image_size=16)
    assert built(erasing=erasing).batch_keys == {"image", "label", ERASE_KEY}


def test_images_are_erased_before_they_are_mixed_and_as_the_batch_says() -> None:
    erasing = ErasingConfig(probability=0.5, fill="zero")
    objective, samples = with_random_head(built(erasing=erasing)), batch()
    nothing = torch.zeros(len(samples["label"]), 5, dtype=torch.int64)
    assert torch.equal(objective({**samples, ERASE_KEY: nothing}, 0).loss, with_random_head(built())(samples, 0).loss)
    size = samples["image"].shape[2]
    everything = nothing + torch.tensor([0, size, 0, size, 0])
    grey = objective.backbone.normalise(samples["image"]) * 0
    logits = objective.head(objective.backbone(grey).pooled_BD)
    expected = torch.nn.functional.cross_entropy(logits.float(), samples["label"])
    torch.testing.assert_close(objective({**samples, ERASE_KEY: everything}, 0).loss, expected)


def test_step_flops_include_the_head() -> None:
    config = SupervisedConfig(num_classes=7, pre_logits=9)
    assert config.step_flops(MODEL.shape) == step_flops(MODEL.shape) + 3 * 2 * (32 * 9 + 9 * 7)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"loss": "sigmoid", "label_smoothing": 0.1}, "label_smoothing: has no effect on the sigmoid loss"),
        ({"mix_probability": 0.5}, "mix_probability: has no effect without mixup or cutmix"),
        ({"mixup_alpha": -0.1}, "mixup_alpha: expected a number greater than or equal to 0"),
        ({"num_classes": 0}, "num_classes: expected a number greater than or equal to 1"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        decode(ObjectiveConfig, values={"num_classes": 3, **settings}, source="run.yaml")


def test_both_heads_of_a_distilled_model_learn_the_label() -> None:
    config = SupervisedConfig(num_classes=7)
    objective = materialise(config.build(MODEL.model_copy(update={"distillation_token": True}).build()), seed=0)
    for head in (objective.head, objective.head_dist):
        nn.init.normal_(head.fc.weight, std=0.2)
    found = batch()
    first_BK, second_BK = objective._logits(objective.backbone.normalise(found["image"]), draws=None)
    assert not torch.allclose(first_BK, second_BK)
    expected = (F.cross_entropy(first_BK, found["label"]) + F.cross_entropy(second_BK, found["label"])) / 2
    torch.testing.assert_close(objective(found, step=0).loss, expected)
    torch.testing.assert_close(objective.predict(found), (first_BK + second_BK) / 2)


def test_what_the_model_draws_comes_with_the_batch_and_is_for_training_only() -> None:
    model = MODEL.model_copy(update={"dropout": 0.5})
    objective = materialise(SupervisedConfig(num_classes=7).build(model.build()), seed=0)
    assert SEED_KEY in objective.batch_keys
    inputs = InputSpec(image_size=16, num_channels=1, draws=model.draw_sources)
    transform = SupervisedConfig(num_classes=7).sample_transform(inputs)
    assert (transform.key, type(transform.source)) == (SEED_KEY, SeedSource)
    nn.init.normal_(objective.head.fc.weight)
    losses = [objective({**batch(), SEED_KEY: torch.arange(8) + first}, step=0).loss for first in (0, 0, 8)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(objective.predict(batch()), objective.predict({**batch(), SEED_KEY: torch.arange(8)}))


def test_what_the_backbone_adds_to_the_loss_is_added_and_told() -> None:
    halting = {"gate_scale": 2, "gate_shift": -1, "ponder_weight": 0.5}
    model = ViTConfig.model_validate({**MODEL.model_dump(exclude={"halting", "depth"}), "halting": halting, "depth": 3})
    objective = with_random_head(materialise(SupervisedConfig(num_classes=7).build(model.build()), seed=0))
    found = batch()
    spending, features = objective.spend(found), objective.backbone(objective.backbone.normalise(found["image"]))
    assert torch.equal(spending.logits_BK, objective.predict(found))
    assert torch.equal(spending.tokens_BL, features.tokens_BL)
    output = objective(found, step=0)
    expected = F.cross_entropy(spending.logits_BK, found["label"]) + features.loss_B.mean()
    torch.testing.assert_close(output.loss, expected)
    assert features.loss_B.min() > 0.5
    assert output.metrics["backbone_loss"] == features.loss_B.mean()
    assert output.metrics["tokens_per_block"] == spending.tokens_BL.float().mean() < 5


def test_a_plain_backbone_adds_nothing() -> None:
    assert set(built()(batch(), step=0).metrics) == {"train_top1"}
