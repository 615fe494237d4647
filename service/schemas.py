"""What goes over the wire at `/v1`: query, answer and problem, as the OpenAPI document shows them.

An answer is a dictionary, not a checked object: it is made here for every request, and nobody else writes to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field, model_validator, with_config
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from service.explain import Style
from service.settings import PresetName

Explain = Literal["none", "mask", "overlay"]

_ANSWER: JsonDict = {
    "model": {"name": "cifar100-vits14", "version": "1.0.0"},
    "results": [
        {
            "predictions": [{"index": 78, "label": "snake", "probability": 0.97}],
            "threshold": 0.5,
            "size_px": 112,
            "degraded": False,
            "skipped_patches": {"mean": 21.3, "per_layer": [0, 2, 9], "patches": 64},
            "macs": {"used": 801000000, "dense": 1400000000, "ratio": 0.57},
        }
    ],
    "timing_ms": {"decode": 0.4, "queue": 1.1, "inference": 18.2, "total": 20.0},
    "batch_size": 7,
}


class SpendQuery(BaseModel):
    """What to spend on an image, and on which model: at most one of `threshold`, `compute` and `preset`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="Score threshold: 0 computes every patch, larger skips more. Accuracy at each is in "
            "/v1/models; beyond those that a model was trained at it falls steeply.",
        ),
    ] = None
    compute: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="Share of the dense MACs at the full size to spend on average; solved with the calibration "
            "table to the most accurate pair of input size and threshold, for one look; less than the cheapest pair "
            "takes is that pair.",
        ),
    ] = None
    preset: Annotated[PresetName | None, Field(description="An input size, a threshold and `sure`, by name.")] = None
    sure: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="Least probability of the first label that is enough. Where a look at a smaller input gives "
            "less, the image is looked at again at a larger one, and that answers. A first look at the full size or "
            "above is all, unless `again` is larger. Left out, it is the preset's, or one look is all.",
        ),
    ] = None
    again: Annotated[
        int | None,
        Field(
            description="Input size of the second look in pixels, one of the model's and larger than the first; left "
            "out, the full one."
        ),
    ] = None
    degrade: Annotated[
        bool | None,
        Field(
            description="`false`: never less compute than asked. `true`: less if load or the deadline needs it. Left "
            "out, load may lower presets and `compute`, but no `threshold` and no `size`."
        ),
    ] = None
    size: Annotated[
        int | None,
        Field(
            description="Input size in pixels, one of the model's. With `threshold` where to run it, with `compute` "
            "where to search, alone the default preset's threshold at this size; not with `preset`."
        ),
    ] = None
    model: Annotated[str | None, Field(description="Name of the model; the default one if left out.")] = None

    @property
    def may_be_lowered_by_load(self) -> bool:
        """Who names a threshold or a size means it; who names a share or a preset names what to spend at best."""
        return (self.threshold is None and self.size is None) if self.degrade is None else self.degrade

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_parameters(cls, data: Any) -> Any:
        unknown = sorted(set(data) - set(cls.model_fields)) if isinstance(data, dict) else []
        if unknown:
            raise PydanticCustomError(
                "unknown_parameter",
                "unknown query parameter {unknown}; known are {known}",
                {"unknown": ", ".join(repr(name[:100]) for name in unknown), "known": ", ".join(cls.model_fields)},
            )
        return data


class ClassifyQuery(SpendQuery):
    """How to classify, and what to answer."""

    top_k: Annotated[int, Field(ge=1, le=1000, description="Predictions to return; at most one for each label.")] = 5
    explain: Annotated[
        Explain,
        Field(description="`mask`: kept patches (1) of every layer; `overlay`: the same as a PNG data URI."),
    ] = "none"


class ExplainQuery(SpendQuery):
    """How to classify, and how to draw it."""

    style: Annotated[
        Style,
        Field(
            description="`classes`: a tile for each layer, idle patches tinted if a later layer computes them again "
            "and black if none does; `overlay`: idle patches black; `depth`: how many layers computed each patch."
        ),
    ] = "classes"


class ModelId(TypedDict):
    """Which model answered."""

    name: str
    version: str


class Prediction(TypedDict):
    """One label and its probability."""

    index: int
    label: str
    probability: float


class SkippedPatches(TypedDict):
    """Patches the model didn't compute."""

    mean: Annotated[float, Field(description="Mean over the gated layers.")]
    per_layer: Annotated[Sequence[int], Field(description="Of every layer; 0 for a layer without a gate.")]
    patches: Annotated[int, Field(description="Patches of the image at this input size.")]


class Macs(TypedDict):
    """Multiply-accumulates spent on this image."""

    used: int
    dense: Annotated[int, Field(description="Of the dense model at its full input size, whatever size was used.")]
    ratio: float


class FirstLook(TypedDict):
    """What an image was looked at with before, when that wasn't sure."""

    prediction: Prediction
    threshold: float
    size_px: int


class Result(TypedDict):
    """The answer for one image."""

    predictions: list[Prediction]
    threshold: float
    size_px: int
    degraded: Annotated[bool, Field(description="Whether load or the deadline made it less compute than asked.")]
    skipped_patches: SkippedPatches
    macs: Macs
    mask: NotRequired[
        Annotated[list[list[int]], Field(description="[layers][patches], 1 = computed; with explain=mask.")]
    ]
    first_look: NotRequired[
        Annotated[
            FirstLook,
            Field(
                description="There if that wasn't sure enough and the image was looked at again; `macs` counts both."
            ),
        ]
    ]
    cached: NotRequired[
        Annotated[
            Literal[True],
            Field(
                description="There if nothing was computed for this request. The answer may have had more compute; "
                "`macs` are what it took."
            ),
        ]
    ]
    overlay: NotRequired[
        Annotated[str, Field(description="PNG data URI, a tile for each layer; with explain=overlay.")]
    ]


class TimingMs(TypedDict):
    """Where the time went, in milliseconds; with several images the slowest one's phases."""

    decode: float
    queue: float
    inference: float
    total: float


@with_config(ConfigDict(json_schema_extra={"examples": [_ANSWER]}))
class ClassifyResponse(TypedDict):
    """The answer to one request."""

    model: ModelId
    results: Annotated[list[Result], Field(description="One for each image, in the order sent.")]
    timing_ms: TimingMs
    batch_size: Annotated[int, Field(description="Images in the engine's batch; with several images the largest.")]


class Parameter(BaseModel):
    """What is wrong with one parameter."""

    name: str
    message: str


class Problem(BaseModel):
    """An error, RFC 9457 `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    parameters: list[Parameter] | None = None


class ModelSummary(BaseModel):
    """A served model."""

    name: str
    version: str
    architecture: str
    precision: str = Field(description="Of the large matrix products, as the engine runs them.")
    sizes_px: list[int]
    presets: list[str]
    labels: int = Field(description="How many labels it knows.")


class ModelList(BaseModel):
    """All served models."""

    models: list[ModelSummary]


class Status(BaseModel):
    """A probe's answer."""

    status: str
