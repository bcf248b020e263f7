"""Small things every other room stands on: files, logs, downloads, images on disk. Imports nothing of the project."""

from .archives import ImageArchive
from .downloads import DownloadError, is_url, local_path, open_url
from .images import BadImageError, decode_image, to_float, to_uint8
from .util import (
    EasyDict,
    Logger,
    atomic_write,
    construct_by_name,
    format_bytes,
    format_time,
    remove_unfinished,
)

__all__ = [
    'BadImageError',
    'DownloadError',
    'EasyDict',
    'ImageArchive',
    'Logger',
    'atomic_write',
    'construct_by_name',
    'decode_image',
    'format_bytes',
    'format_time',
    'is_url',
    'local_path',
    'open_url',
    'remove_unfinished',
    'to_float',
    'to_uint8',
]
