import torch

from vitscale.nn.preprocess import Normaliser


def test_equals_the_definition_per_channel() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image_BCHW = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    expected = (image_BCHW / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(Normaliser(mean=mean, std=std)(image_BCHW, dtype=torch.float32), expected)


def test_one_number_serves_all_channels_and_spans_minus_one_to_one() -> None:
    image_BCHW = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1)
    normalised = Normaliser(mean=(0.5,), std=(0.5,))(image_BCHW, dtype=torch.float32)
    assert normalised.flatten().tolist() == [-1.0, 1.0]


def test_leaves_the_input_alone_and_rounds_once() -> None:
    image_BCHW = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    before, normaliser = image_BCHW.clone(), Normaliser(mean=(0.3,), std=(0.2,))
    half = normaliser(image_BCHW, dtype=torch.bfloat16)
    assert torch.equal(half, normaliser(image_BCHW, dtype=torch.float32).bfloat16())
    assert torch.equal(image_BCHW, before)


def test_constants_made_during_evaluation_serve_training() -> None:
    normaliser, image_BCHW = Normaliser(mean=(0.5,), std=(0.5,)), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    with torch.inference_mode():
        normaliser(image_BCHW, dtype=torch.float32)
    weight = torch.ones(1, requires_grad=True)
    (normaliser(image_BCHW, dtype=torch.float32) * weight).sum().backward()
    assert weight.grad.item() == -4.0
