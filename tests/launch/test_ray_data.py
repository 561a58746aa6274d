"""Interoperation: Ray Data reads packed shards as the WebDatasets that they are, byte for byte and decoded."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.packed import pack_images
from vitscale.data.images.decode import decode_image
from vitscale.data.reader import SampleReader

NUM_SAMPLES = 12


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_ray_data_reads_our_shards(tmp_path: Path) -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = pack_images(tmp_path, num_samples=NUM_SAMPLES, samples_per_shard=7)
    ours = {sample.key: sample.members for sample in SampleReader(dataset).read(0, NUM_SAMPLES)}
    shards = [str(tmp_path / shard.name) for shard in dataset.shards]

    raw = {row["__key__"]: row for row in ray.data.read_webdataset(shards, decoder=None, override_num_blocks=2).take_all()}
    assert len(shards) == 2
    assert {key: (row["png"], row["cls"]) for key, row in raw.items()} == {
        key: (bytes(members["png"]), bytes(members["cls"])) for key, members in ours.items()
    }

    decoded = {row["__key__"]: row for row in ray.data.read_webdataset(shards, override_num_blocks=2).take_all()}
    assert decoded.keys() == ours.keys()
    for key, row in decoded.items():
        assert row["cls"] == int(bytes(ours[key]["cls"]))
        np.testing.assert_array_equal(row["png"], decode_image(ours[key]["png"], num_channels=1)[:, :, 0])
