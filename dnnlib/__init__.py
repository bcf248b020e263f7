"""Files, logs, downloads, and images on disk. Imports nothing else of this project."""

from .archives import ImageArchive
from .downloads import DownloadError, is_url, local_path
from .images import BadImageError, decode_image, to_float, to_uint8
from .util import (
    Logger,
    atomic_write,
    format_bytes,
    format_time,
    remove_unfinished,
)

__all__ = [
    'BadImageError',
    'DownloadError',
    'ImageArchive',
    'Logger',
    'atomic_write',
    'decode_image',
    'format_bytes',
    'format_time',
    'is_url',
    'local_path',
    'remove_unfinished',
    'to_float',
    'to_uint8',
]
