"""All pipelines of the matrix, by name."""

from __future__ import annotations

from matrix.images import IMAGES
from matrix.unets import UNETS
from matrix.videos import VIDEOS

RECORDS = {record.name: record for record in (*UNETS, *IMAGES, *VIDEOS)}
