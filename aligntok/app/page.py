"""The page: Gradio's fields around `functions`, served to this machine alone, and nothing sent anywhere."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from functools import wraps
from typing import Any

from aligntok.app import functions
from aligntok.app.functions import Models, takes_prompts
from aligntok.app.settings import AppRequest
from aligntok.device import explaining_out_of_memory
from aligntok.errors import AlignTokError, ConfigError
from aligntok.imports import FAILURES, import_failure
from aligntok.io.console import say

HOST = "127.0.0.1"


def serve(asked: AppRequest) -> None:
    """Load the models, and serve the page until Ctrl-C.

    Raises ConfigError, before anything is loaded, where Gradio is not installed or the port is taken; what loading
    raises.
    """
    _gradio()
    _check_port(asked.port)
    models = functions.load(asked.tokenizers, asked.generator, asked.device, asked.text_encoders)
    made = page(models)
    say(f"The page is at http://{HOST}:{asked.port}   (Ctrl-C ends it)")
    made.launch(server_name=HOST, server_port=asked.port, share=False, quiet=True, show_error=True, footer_links=[])


def _gradio() -> Any:
    """Import Gradio, which then tells its makers nothing. Raises ConfigError where it is not here."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # else it looks a name up outside when it starts (6.31)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("NO_PROXY", "no_proxy"):  # it asks itself whether it is there, and a proxy would not know
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST, "localhost")))
    try:
        import gradio
    except FAILURES as error:
        raise ConfigError(f"the page needs Gradio: {import_failure(error)}") from error
    return gradio


def _check_port(port: int) -> None:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
            raise ConfigError(f"app: port {port} {reason}; give another, such as --port {port % 65535 + 1}") from error


def page(models: Models) -> Any:
    """Return Gradio's page of some models."""
    gr = _gradio()
    with gr.Blocks(title="AlignTok", analytics_enabled=False) as made:
        with gr.Tab("Reconstruct"):
            _reconstruct(gr, models)
        if models.generator is not None:
            with gr.Tab("Sample"):
                _sample(gr, models)
        with gr.Tab("Interpolate"):
            _interpolate(gr, models)
    return made


def _answering(gr: Any, work: Callable[..., Any]) -> Callable[..., Any]:
    """Show a mistake in its sentence; a defect as it is."""

    @wraps(work)
    def answer(*given: Any) -> Any:
        try:
            with explaining_out_of_memory("these pictures", "take fewer or smaller ones, or start on another --device"):
                return work(*given)
        except AlignTokError as error:
            raise gr.Error(str(error)) from error

    return answer


def _reconstruct(gr: Any, models: Models) -> None:
    def show(picture: Any) -> list[Any]:
        return [each for found in functions.compare(models, picture).values() for each in found]

    picture = gr.Image(type="pil", label="Picture", sources=["upload", "clipboard"])
    button, fields = gr.Button("Reconstruct", variant="primary"), []
    for name in models.tokenizers:
        with gr.Row():
            fields += [gr.Image(label=name, format="png"), gr.Image(label="error x4", format="png")]
        fields.append(gr.Textbox(label="How near", interactive=False))
    button.click(_answering(gr, show), picture, fields, api_name="reconstruct")


def _sample(gr: Any, models: Models) -> None:
    model = models.generator
    assert model is not None

    def show(word: Any, seed: float, steps: float, guidance: float, number: float, negative: str = "") -> Any:
        return functions.sample(models, str(word), int(seed), int(steps), guidance, int(number), negative)

    if takes_prompts(model):
        word = gr.Textbox(label="Prompt")
    elif model.condition.class_names:
        word = gr.Dropdown(list(model.condition.class_names), label="Class", value=model.condition.class_names[0])
    else:
        word = gr.Textbox(label="Class", value="0")
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        steps = gr.Slider(1, 250, model.sampling.steps, step=1, label="Steps")
        guidance = gr.Slider(0, 20, model.sampling.cfg_scale, label="Guidance")
        number = gr.Slider(1, 16, 4, step=1, label="Samples")
    given = [word, seed, steps, guidance, number]
    if takes_prompts(model):
        given.append(gr.Textbox(label="Guidance leads away from"))
    button = gr.Button("Sample", variant="primary")
    button.click(_answering(gr, show), given, gr.Gallery(label="Samples", format="png"), api_name="sample")


def _interpolate(gr: Any, models: Models) -> None:
    def show(name: str, first: Any, last: Any, steps: float) -> Any:
        return functions.interpolate(models, name, first, last, int(steps))

    names = list(models.tokenizers)
    name = gr.Dropdown(names, label="Tokenizer", value=names[0])
    with gr.Row():
        ends = [gr.Image(type="pil", label=label, sources=["upload", "clipboard"]) for label in ("First", "Last")]
    steps, button = gr.Slider(2, 16, 7, step=1, label="Pictures"), gr.Button("Interpolate", variant="primary")
    button.click(
        _answering(gr, show), [name, *ends, steps], gr.Gallery(label="Between", format="png"), api_name="interpolate"
    )
