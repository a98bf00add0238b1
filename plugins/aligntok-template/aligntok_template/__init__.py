"""An AlignTok plugin: it names its components, and where they are imported from when first built."""

from aligntok import hookimpl
from aligntok.registry import Registries


@hookimpl
def aligntok_register(registries: Registries) -> None:
    """Add one encoder, one loss and one text encoder."""
    registries.encoders.add("my_encoder", "aligntok_template.encoder.MyEncoder")
    registries.losses.add("my_loss", "aligntok_template.loss.MyLoss")
    registries.text_encoders.add("my_text_encoder", "aligntok_template.text_encoder.MyTextEncoder")
