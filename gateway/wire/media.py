"""What the body shows of images, sound and files: what bounds the tokens that they take."""

from gateway.core.values import Attachment, Image


def image(url: str, detail: str) -> Image:
    """`url`: a `data:` URL, or an address, which shows nothing."""
    del url
    return Image(detail)


def sound(data: str) -> Attachment:
    """`data`: base64."""
    return Attachment("audio", decoded_size(data))


def file(data: str) -> Attachment:
    """`data`: base64, with or without `data:…,` before it."""
    return Attachment("file", decoded_size(data))


def decoded_size(data: str) -> int:
    """The bytes that base64 text stands for, rounded up (a `data:` prefix counts as data)."""
    return -(-len(data) * 3 // 4)
