"""One call a component: each is held to its whole contract."""

from aligntok.plugins.testing import check_encoder, check_loss, check_text_encoder


def test_my_encoder_keeps_its_contract():
    check_encoder("my_encoder", image_size=(64, 96), pretrained=False)


def test_my_loss_keeps_its_contract():
    check_loss("my_loss", image_size=(64, 96))


def test_my_text_encoder_keeps_its_contract():
    check_text_encoder("my_text_encoder", max_tokens=32)
