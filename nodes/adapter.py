"""Loading an adapter onto a model, and giving a prompt its K."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bokeh_ops.adapter.conditions import K
from ..bokeh_ops.adapter.files import count_double_blocks, read_adapter
from ..bokeh_ops.host.adapter.apply import apply_adapter
from ..bokeh_ops.host.architectures import recognise, titles
from ..bokeh_ops.host.folders import adapters as library
from ..bokeh_ops.host.folders.files import check_names
from ..bokeh_ops.host.graph import samplers_without_adapter
from ..bokeh_ops.host.notices import say
from ..bokeh_ops.host.sampling import conditioning as carry
from ..bokeh_ops.numbers import parse_values

CATEGORY = "Bokeh"


class LoadBokehAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadBokehAdapter",
            display_name="Load Bokeh Adapter",
            category=CATEGORY,
            description=(
                "Teaches the model to obey a defocus number K. Reads the adapter the authors released for FLUX and "
                f"adapters trained with this extension, for {titles()}. The model that comes in is not changed."
            ),
            inputs=[
                io.Model.Input("model", tooltip=f"{titles('or')}. Load LoRAs before this node."),
                io.Combo.Input(
                    "adapter",
                    options=library.FOLDER.names(),
                    tooltip=(
                        "A .safetensors file in models/bokeh/ or a folder in it. Keep a released adapter's "
                        "config.json beside it."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Lambda: how strongly the bokeh term is added to attention. 1 as trained, 0 is off.",
                ),
                io.Float.Input(
                    "query_key_strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip=(
                        "How strongly the adapter's query/key weights are applied, if it has any. 1 as trained, "
                        "0 is off."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the adapter. Give it to a sampler together with a K.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, adapter: str | None = None) -> bool | str:
        return check_names(library.adapter_path, adapter)

    @classmethod
    def fingerprint_inputs(cls, adapter: str | None, **kwargs: Any) -> str | float:
        return library.adapter_hash(adapter)

    @classmethod
    def execute(cls, model: Any, adapter: str, strength: float, query_key_strength: float) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        path = library.adapter_path(adapter)
        loaded = read_adapter(path, count_double_blocks(recognise(model).widths))
        if strength == 0 and (query_key_strength == 0 or not loaded.query_key_layers):
            say("strength is 0, so the adapter does nothing: the model passes through unchanged.", node_id)
        return io.NodeOutput(apply_adapter(model, loaded, strength, query_key_strength, adapter, node_id))


def k_slider(name: str, display_name: str, default: float, tooltip: str, optional: bool = False) -> Any:
    """A K by hand. Its node validates ``name`` itself, or the host refuses what a link brings beyond the slider."""
    return io.Float.Input(
        name,
        display_name=display_name,
        default=default,
        min=0.0,
        max=30.0,
        step=0.1,
        round=0.001,
        display_mode=io.NumberDisplay.slider,
        optional=optional,
        tooltip=tooltip,
    )


class BokehCondition(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehCondition",
            display_name="Bokeh Condition",
            category=CATEGORY,
            description=(
                "Attaches the defocus K to the prompts. K is the blur radius in pixels per unit of disparity on a "
                "picture whose longer side is 512 pixels: 0 is sharp from front to back, 30 the strongest blur."
            ),
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt's conditioning."),
                io.Conditioning.Input("negative", tooltip="The negative prompt's conditioning."),
                k_slider(
                    "bokeh",
                    "K",
                    15.0,
                    "K: 0 all in focus, 30 strongest blur. Values beyond the trained 0 to 30, through a link, "
                    "are used as they are, with a warning.",
                ),
                io.Combo.Input(
                    "negative_bokeh",
                    display_name="negative K",
                    options=list(carry.NEGATIVE_MODES),
                    default=carry.NEGATIVE_MODES[0],
                    tooltip=(
                        "What the negative branch is told. 'released (-30)': as the authors' code does. 'same K': "
                        "guidance acts on the words alone. 'none': the negative branch runs without the adapter. "
                        "Without effect at CFG 1."
                    ),
                ),
                io.String.Input(
                    "values",
                    display_name="K values",
                    default="",
                    optional=True,
                    tooltip=(
                        "One K per picture of the latent batch, such as '0, 8, 16, 28' or '0:28:4'. Replaces the "
                        "slider when not empty. f-numbers such as 'f/2.8' where Bokeh K From Camera gives K."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with K."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt with its K."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(cls, bokeh: float | None = None) -> bool | str:
        # Named here so that the host does not refuse a K outside the slider's range: it is allowed, and said.
        # No `**kwargs`: with it the host would check none of the other inputs either.
        return True

    @classmethod
    def execute(
        cls, positive: Any, negative: Any, bokeh: float, negative_bokeh: str, values: str = ""
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        k = parse_values(values, camera=bokeh) if values.strip() else parse_values(bokeh)
        warning = K.outside(k)
        if warning:
            say(warning, node_id)
        bare = samplers_without_adapter(cls.hidden.prompt, node_id)
        if bare:
            which = ", ".join(f"{cls.hidden.prompt[node]['class_type']}, node {node}" for node in bare)
            say(
                f"K is given but no LoadBokehAdapter feeds the sampler that gets this prompt ({which}), so K does "
                "nothing there. Put LoadBokehAdapter between the model and the sampler.",
                node_id,
            )
        return io.NodeOutput(carry.with_k(positive, k), carry.with_negative_k(negative, k, negative_bokeh))
