"""Imports: every layout gives its project's logits, goes back bit for bit, and serves as a run; every kind of bad file is refused."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.train.tiny_run import tiny_config
from tests.weights import foreign
from tests.weights.foreign import google_arrays, open_clip_state, stacked, torch_state, write_hugging_face, write_npz, write_timm
from vitscale import api
from vitscale.checkpoint.discover import resolve_checkpoint
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config import CheckpointError, UsageError
from vitscale.train.import_weights import Imported, import_weights, plan_import
from vitscale.train.initial import initial_values

HEADS = f"model.num_heads={foreign.HEADS}"


def deltas(imported: Imported) -> dict[str, float]:
    """The differences that were measured, as shares of the largest output."""
    return {c.against: c.max_abs_delta / max(1, c.max_abs_output) for c in imported.comparisons if c.skipped is None}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(resolve_checkpoint(folder))
    return {name: reader.read_full(name) for name in reader.shapes()}


GOOGLE: dict[str, tuple[dict[str, Any], str]] = {
    "vit_jax": ({}, ""),
    "vit_jax, mean": ({"pooling": "mean"}, ""),
    "vit_jax, pre_logits": ({"pre_logits": 16}, ""),
    "vit_jax, training state": ({}, "opt/target/"),
    "big_vision, own row": ({"big_vision": True}, "params/"),
    "big_vision, no row": ({"big_vision": True, "class_row": False}, "params/"),
    "big_vision, mean": ({"big_vision": True, "pooling": "mean"}, "params/"),
    "big_vision, image tower": ({"big_vision": True, "pooling": "mean"}, "params/img/"),
}


@pytest.mark.parametrize("case", GOOGLE)
def test_google_files_give_googles_and_timms_logits(tmp_path: Path, case: str) -> None:
    options, prefix = GOOGLE[case]
    path = write_npz(tmp_path / "weights.npz", google_arrays(**options), prefix=prefix)
    imported = import_weights(path, tmp_path / "out")
    assert imported.layout == ("big_vision" if options.get("big_vision") else "vit_jax")
    assert imported.model["model"]["gelu"] == "tanh"
    found = deltas(imported)
    assert set(found) == ({f"the formulas of {imported.layout}"} | (set() if options.get("pre_logits") else {"timm"}))
    assert max(found.values()) <= 1e-6


def test_image_towers_of_open_clip_give_timms_embeddings(tmp_path: Path) -> None:
    state = open_clip_state()
    save_file({f"module.{name}": value for name, value in state.items()}, tmp_path / "weights.safetensors")
    imported = import_weights(tmp_path / "weights.safetensors", tmp_path / "out", overrides=(HEADS, "model.gelu=quick"))
    found = deltas(imported)
    assert set(found) == {"the formulas of open_clip", "timm"}
    assert max(found.values()) <= 1e-6
    assert len(imported.set_aside) == 6  # the text tower and the scale
    head = tensors(tmp_path / "out")
    assert torch.equal(head["head.fc.weight"], state["visual.proj"].T)
    assert not head["head.fc.bias"].any()


def test_fixed_positions_are_in_no_file(tmp_path: Path) -> None:
    arrays = google_arrays(big_vision=True, pooling="mean")
    del arrays["pos_embedding"]
    path = write_npz(tmp_path / "weights.npz", arrays, prefix="params/")
    with pytest.raises(CheckpointError, match=r"give model\.image_size"):
        import_weights(path, tmp_path / "out")
    imported = import_weights(path, tmp_path / "out", overrides=["model.image_size=16"])
    assert imported.model["model"]["positions"] == "sincos2d_big_vision"
    assert set(deltas(imported)) == {"the formulas of big_vision"}
    assert max(deltas(imported).values()) <= 1e-6


def test_stacked_blocks_are_the_same_model(tmp_path: Path) -> None:
    arrays = google_arrays(big_vision=True)
    import_weights(write_npz(tmp_path / "apart.npz", arrays, prefix="params/"), tmp_path / "apart")
    imported = import_weights(write_npz(tmp_path / "stacked.npz", stacked(arrays), prefix="params/"), tmp_path / "stacked")
    assert max(deltas(imported).values()) <= 1e-6
    apart, together = tensors(tmp_path / "apart"), tensors(tmp_path / "stacked")
    assert apart.keys() == together.keys()
    assert all(torch.equal(value, together[name]) for name, value in apart.items())


def test_bfloat16_arrays_are_read_exactly(tmp_path: Path) -> None:
    arrays = google_arrays()
    rounded = {name: torch.from_numpy(value).bfloat16().float() for name, value in arrays.items()}
    import_weights(write_npz(tmp_path / "w.npz", {name: foreign.as_bfloat16(value) for name, value in arrays.items()}), tmp_path / "out")
    found = tensors(tmp_path / "out")
    assert torch.equal(found["head.fc.weight"], rounded["head/kernel"].T)
    assert torch.equal(found["backbone.pos_embed"], rounded["Transformer/posembed_input/pos_embedding"])


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_timm_folders_give_timms_logits(tmp_path: Path, pooling: str) -> None:
    folder = write_timm(tmp_path / "timm", torch_state(pooling=pooling), model_args={"num_heads": foreign.HEADS})
    imported = import_weights(folder, tmp_path / "out")
    assert imported.layout == "timm"
    assert imported.model["model"]["image_mean"] == [0.1, 0.2, 0.3]
    assert set(deltas(imported)) == {"the formulas of timm", "timm"}
    assert max(deltas(imported).values()) <= 1e-6


@pytest.mark.parametrize(("hidden_act", "eps"), [("gelu", 1e-12), ("gelu_pytorch_tanh", 1e-6)])
def test_hugging_face_folders_give_their_logits(tmp_path: Path, hidden_act: str, eps: float) -> None:
    folder = write_hugging_face(tmp_path / "hf", hidden_act=hidden_act, layer_norm_eps=eps)
    imported = import_weights(folder, tmp_path / "out")
    assert imported.model["model"]["layer_norm_eps"] == eps
    assert set(deltas(imported)) == {"the formulas of hf_vit", "transformers"}
    assert max(deltas(imported).values()) <= 1e-6


def test_a_model_without_a_head_starts_another_run(tmp_path: Path) -> None:
    imported = import_weights(write_hugging_face(tmp_path / "hf", headless=True), tmp_path / "out")
    assert set(imported.set_aside) == {"pooler.dense.bias", "pooler.dense.weight"}
    assert not any(name.startswith("head.") for name in tensors(tmp_path / "out"))


def test_maes_encoder_is_taken_without_its_decoder(tmp_path: Path) -> None:
    state = torch_state(num_classes=0) | {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, foreign.WIDTH)}
    save_file(state, tmp_path / "mae.safetensors")
    imported = import_weights(tmp_path / "mae.safetensors", tmp_path / "out", overrides=[HEADS])
    assert set(imported.set_aside) == {"mask_token", "decoder_embed.weight"}
    assert imported.model["model"]["image_mean"] == [0.485, 0.456, 0.406]
    assert imported.model["model"]["resampling"] == "mae"


def test_the_bytes_of_a_google_file_come_back(tmp_path: Path) -> None:
    arrays = google_arrays(pre_logits=16)
    import_weights(write_npz(tmp_path / "weights.npz", arrays), tmp_path / "first")
    exported = api.export(tmp_path / "first", layout="vit_jax")
    with np.load(exported.folder / "model.npz", allow_pickle=False) as back:
        assert set(back.files) == set(arrays)
        assert all(np.array_equal(back[name], value) for name, value in arrays.items())


def test_a_run_starts_from_an_import_and_evaluates_it(tmp_path: Path) -> None:
    state = torch_state(num_classes=10)
    folder = write_timm(tmp_path / "timm", state, model_args={"num_heads": foreign.HEADS})
    import_weights(folder, tmp_path / "out")
    sizes = [f"model.{key}={value}" for key, value in {"width": 32, "depth": 2, "num_heads": 4, "mlp_width": 48, "image_size": 8}.items()]
    config = tiny_config(
        tmp_path, "model.num_channels=3", *sizes, f"init_from.path={tmp_path}/out",
        f"evals.test={{kind: classification, path: {tmp_path}/shards, batch_size: 7}}",
    )  # fmt: skip
    with torch.device("meta"):
        objective = config.objective.build(config.model.build())
    initial = initial_values(config, objective, resuming=False)
    assert torch.equal(initial.value("head.fc.weight", objective.head.fc.weight, (10, 32)), state["head.weight"])
    assert "backbone.pos_embed" in (initial.table or "")
    same_size = tiny_config(tmp_path, "model.num_channels=3", *sizes, "model.image_size=12", *config_evals(tmp_path))
    assert api.evaluate(same_size, checkpoint=tmp_path / "out")["test"]["num_samples"] == 96


def config_evals(root: Path) -> list[str]:
    return [f"evals.test={{kind: classification, path: {root}/shards, batch_size: 7}}"]


def test_a_wrong_number_of_heads_is_noticed_only_where_another_implementation_knows(tmp_path: Path) -> None:
    """transformers reads its own config.json; an override that contradicts it shows as another model."""
    folder = write_hugging_face(tmp_path / "hf")
    with pytest.raises(CheckpointError, match=r"gives other outputs .*against transformers: max \|delta logits\|"):
        import_weights(folder, tmp_path / "out", overrides=["model.num_heads=2"])
    assert not (tmp_path / "out").exists()


def test_another_gelu_is_refused_and_accepted_where_it_was_asked_for(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "weights.npz", google_arrays())
    with pytest.raises(CheckpointError, match="--tolerance"):
        import_weights(path, tmp_path / "out", overrides=["model.gelu=exact"])
    imported = import_weights(path, tmp_path / "out", overrides=["model.gelu=exact"], tolerance=0.1)
    assert 1e-5 < max(deltas(imported).values()) < 0.1


def test_it_is_written_in_parts_where_memory_is_short(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "weights.npz", google_arrays())
    import_weights(path, tmp_path / "whole")
    import_weights(path, tmp_path / "parts", max_memory_bytes=48 << 10)
    whole, parts = (CheckpointReader(resolve_checkpoint(tmp_path / name)) for name in ("whole", "parts"))
    assert whole.manifest.world_size == 1
    assert parts.manifest.world_size > 2
    assert all(torch.equal(whole.read_full(name), parts.read_full(name)) for name in whole.shapes())
    with pytest.raises(CheckpointError, match=r"--max-memory: 10\.0 KiB are allowed.* give at least 1MiB"):
        import_weights(path, tmp_path / "none", max_memory_bytes=10 << 10)


def test_a_dry_run_of_a_pickle_knows_the_model_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch_state()
    torch.save(state, tmp_path / "weights.pth")
    monkeypatch.setattr("vitscale.train.import_weights.shapes_of_pickle", lambda _: {name: tuple(v.shape) for name, v in state.items()})
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        plan_import(tmp_path / "weights.pth", tmp_path / "out", overrides=[HEADS])
    plan = plan_import(tmp_path / "weights.pth", tmp_path / "out", overrides=[HEADS], allow_pickle=True)
    assert plan.layout == "timm"
    assert plan.model["model"]["num_heads"] == foreign.HEADS
    assert plan.room.disk_bytes == 2 * 4 * sum(value.numel() for value in state.values())
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


def test_it_tells_how_far_it_is(tmp_path: Path) -> None:
    told: dict[str, list[int]] = {}

    @contextmanager
    def watch(label: str, *, total: int, unit: str = "items") -> Iterator[Callable[[int], None]]:
        told[label] = [total]
        yield told[label].append
        assert told[label][-1] == total, (label, unit)
        assert told[label][1:] == sorted(told[label][1:])

    import_weights(write_npz(tmp_path / "weights.npz", google_arrays()), tmp_path / "out", watch=watch)
    blocks = {"running the model here, in blocks": 2, "running the formulas of vit_jax, in blocks": 2, "running timm": 1}
    assert {label: values[0] for label, values in told.items() if label in blocks} == blocks
    assert set(told) == {"hashing", "reading and writing", *blocks}


def without(arrays: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: value for name, value in arrays.items() if part not in name}


def with_nan(arrays: dict[str, Any]) -> dict[str, Any]:
    arrays["Transformer/encoder_norm/bias"][3:5] = np.nan
    return arrays


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "missing": (without(google_arrays(), "query/bias"), r"missing: .*encoderblock_\{i\}/.*query/bias \(2 blocks\)"),
    "extra": (google_arrays() | {"aux/kernel": np.zeros((2, 3), np.float32)}, r"unknown: aux/kernel: 2 x 3"),
    "near": (without(google_arrays(), "head/bias") | {"head/bais": np.zeros(5, np.float32)}, r"head/bias; the nearest name is head/bais"),
    "shape": (google_arrays() | {"head/bias": np.zeros(7, np.float32)}, r"of another shape: head/bias: 7, expected 5"),
    "hybrid": (google_arrays() | {"conv_root/kernel": np.zeros((7, 7, 3, 8), np.float32)}, "its stem is 8 channels wide, and 32 groups"),
    "nan": (with_nan(google_arrays()), r"encoder_norm/bias holds 2 of 32 values that are NaN"),
    "positions": (google_arrays() | {"Transformer/posembed_input/pos_embedding": np.zeros((1, 12, 32), np.float32)}, "no square grid"),
    "no blocks": (without(google_arrays(), "encoderblock"), r"query/kernel is missing"),
    "objects": (google_arrays() | {"note": np.array([{}], dtype=object)}, "holds Python objects"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_content_is_refused_with_what_is_wrong(tmp_path: Path, case: str) -> None:
    arrays, message = BAD[case]
    with pytest.raises(CheckpointError, match=message):
        import_weights(write_npz(tmp_path / "weights.npz", arrays), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.npz"]


def test_what_is_no_part_can_be_left_out(tmp_path: Path) -> None:
    arrays = google_arrays() | {"aux/kernel": np.zeros((2, 3), np.float32)}
    imported = import_weights(write_npz(tmp_path / "weights.npz", arrays), tmp_path / "out", drop=["aux/*"])
    assert imported.set_aside == ("aux/kernel",)


def test_a_patch_size_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "weights.npz", google_arrays())
    with pytest.raises(Exception, match=r"model\.image_size: 14 is not a multiple of model\.patch_size 4"):
        import_weights(path, tmp_path / "out", overrides=["model.image_size=14"])


def test_pickles_need_permission_and_hold_tensors_only(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": torch_state(), "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        import_weights(path, tmp_path / "out", overrides=[HEADS])
    imported = import_weights(path, tmp_path / "out", overrides=[HEADS], allow_pickle=True)
    assert max(deltas(imported).values()) <= 1e-6


def test_heads_that_nothing_tells_must_be_given(tmp_path: Path) -> None:
    save_file(torch_state(), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"give model\.num_heads"):
        import_weights(tmp_path / "w.safetensors", tmp_path / "out")


def test_an_output_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("")
    with pytest.raises(UsageError, match="give a new folder"):
        import_weights(write_npz(tmp_path / "weights.npz", google_arrays()), tmp_path / "out")


def test_flipped_bits_in_an_npz_are_noticed(tmp_path: Path) -> None:
    arrays = google_arrays()
    path = write_npz(tmp_path / "weights.npz", arrays)
    content = path.read_bytes()
    for name in ("embedding/kernel", "head/bias", "Transformer/encoderblock_1/MlpBlock_3/Dense_1/kernel"):
        damaged = bytearray(content)
        damaged[content.index(arrays[name].tobytes()) + 6] ^= 4
        path.write_bytes(bytes(damaged))
        with pytest.raises(CheckpointError, match=f"{name} is damaged: Bad CRC-32"):
            import_weights(path, tmp_path / "out")


def test_the_same_export_twice_is_the_same_file(tmp_path: Path) -> None:
    import_weights(write_npz(tmp_path / "weights.npz", google_arrays()), tmp_path / "out")
    first = {layout: (api.export(tmp_path / "out", layout=layout).folder / "README.md").exists() for layout in ("timm", "vit_jax")}
    assert all(first.values())
    once = load_file(tmp_path / "out" / "export" / "timm" / "model.safetensors")
    again = load_file(api.export(tmp_path / "out", layout="timm").folder / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in once.items())
