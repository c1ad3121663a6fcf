"""The server's answers, as /docs and /openapi.json describe them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Model(_Answer):
    """The model that answered."""

    name: str = Field(description="of the folder or of the registered model")
    version: str = Field(description="of the registered model, or the run ID; empty for a folder")


class Prediction(_Answer):
    """What an image shows."""

    file: str = Field(description="name of the file; empty for a raw body")
    class_: str = Field(alias="class", description="the class with the highest probability")
    probability: float = Field(description="of this class")
    unknown: bool = Field(description="whether the image is unlike those of the training: no class is likely enough")
    probabilities: dict[str, float] = Field(description="by class")


class FailedFile(_Answer):
    """A file that is no image."""

    file: str
    error: str = Field(description="why the file cannot be decoded")


class Predictions(_Answer):
    """An entry per file, in the order of the upload."""

    model: Model
    predictions: list[Prediction | FailedFile]


class HeatMap(_Answer):
    """Where the network looked."""

    model: Model
    class_: str = Field(alias="class", description="the class with the highest probability")
    heat_map: list[list[float]] = Field(description="8 x 8 values in [0, 1], row by row; 1 where it matters most")
    pixels: str = Field(description="the image as the network sees it: a PNG as a data URI")


class Health(_Answer):
    """The state of the server."""

    status: str = Field(description="always `ok`")
    model: Model
    classes: list[str]
    model_error: str | None = Field(description="why the newest model is not served; null if it is")


class Error(_Answer):
    """Why a request was not answered."""

    error: str = Field(description="one sentence")


def describe_upload(files: str) -> dict[str, Any]:
    """Describe the request body of an upload, for FastAPI's `openapi_extra`.

    Args:
        files: what the form has, in words.
    """
    file = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"image": {"type": "array", "items": file, "description": files}}}
    types = {"multipart/form-data": form, "application/octet-stream": file, "image/*": file}
    return {"requestBody": {"required": True, "content": {name: {"schema": schema} for name, schema in types.items()}}}


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "No file, or none that is an image"},
    408: {"model": Error, "description": "The upload is too slow"},
    413: {"model": Error, "description": "The upload is too large, or has too many files"},
    415: {"model": Error, "description": "Another content type"},
    503: {"model": Error, "description": "The server is busy; the header Retry-After says when to try again"},
}
"""What an upload may be answered with, for FastAPI's `responses`."""
