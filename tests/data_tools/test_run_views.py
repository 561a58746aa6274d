"""The views that `show` draws are bit for bit the inputs that the run's own loader makes."""

from pathlib import Path

import numpy as np
import pytest

from tests.train.tiny_run import pack_tiny, tiny_values
from vitscale.config import ConfigError, dump_yaml
from vitscale.data.dataset import open_dataset
from vitscale.data.reader import SampleReader
from vitscale.data.types import InputSpec
from vitscale.data.worker import make_batch
from vitscale.run_config import load_run_config
from vitscale_data_tools.run_views import run_views


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    pack_tiny(tmp_path)
    values = tiny_values(tmp_path)
    values["seed"] = 7
    values["objective"]["augment"] = {"crop": "random_resized", "scale": [0.3, 1.0], "ratio": [0.8, 1.25], "flip": True}
    (tmp_path / "run.yaml").write_text(dump_yaml(values))
    return tmp_path / "run.yaml"


def test_views_are_the_inputs_of_the_run(config_path: Path) -> None:
    config = load_run_config(config_path)
    dataset = open_dataset(config.data.path)
    reader = SampleReader(dataset)
    inputs = InputSpec(image_size=config.model.image_size, num_channels=config.model.num_channels, jpeg_decoder=config.data.jpeg_decoder)
    transform = config.objective.sample_transform(inputs)
    views = run_views(config_path, num_views=3)
    shown = [views(sample) for sample in reader.read(0, 8)]
    for view in range(3):
        trained = make_batch(reader.read(0, 8, epoch=view), transform=transform, seed=7)["image"].numpy()
        assert np.array_equal(np.stack([images[view] for images in shown]).transpose(0, 3, 1, 2), trained)
    assert not np.array_equal(shown[0][0], shown[0][1])


def test_sequences_of_patches_are_shown_put_together(config_path: Path) -> None:
    values = config_path.read_text().replace("  kind: vit\n", "  kind: vit\n  naflex: {sequence_lengths: [3, 4]}\n")
    config_path.write_text(values)
    config = load_run_config(config_path)
    views = run_views(config_path, num_views=2)
    for sample in SampleReader(open_dataset(config.data.path)).read(0, 4):
        assert [image.shape[0] * image.shape[1] in (16, 32, 48) and image.shape[2] == 1 for image in views(sample)] == [True, True]


def test_a_wrong_configuration_is_refused(config_path: Path) -> None:
    config_path.write_text(config_path.read_text() + "unknown: 1\n")
    with pytest.raises(ConfigError, match="unknown"):
        run_views(config_path, num_views=1)
