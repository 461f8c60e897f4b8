"""Runs in a Python of its own (:mod:`.itk_process`), never imported: reads volumes by SimpleITK when asked on stdin.

A request is a line of json: ``path``, ``io`` (the reader's name), ``voxels`` (false: the header only). The answer is a
line of json, ``error`` or the header; after it, if asked for, the voxels as bytes in C order.
"""

import json
import sys

import SimpleITK

_TYPES = {
    SimpleITK.sitkInt8: "i1", SimpleITK.sitkUInt8: "u1", SimpleITK.sitkInt16: "i2", SimpleITK.sitkUInt16: "u2",
    SimpleITK.sitkInt32: "i4", SimpleITK.sitkUInt32: "u4", SimpleITK.sitkInt64: "i8", SimpleITK.sitkUInt64: "u8",
    SimpleITK.sitkFloat32: "f4", SimpleITK.sitkFloat64: "f8",
}  # fmt: skip


def _answer(request: dict) -> tuple[dict, SimpleITK.Image | None]:
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(request["io"])
    reader.SetFileName(request["path"])
    reader.ReadImageInformation()
    header = {
        "size": list(reader.GetSize()),
        "direction": list(reader.GetDirection()),
        "spacing": list(reader.GetSpacing()),
        "origin": list(reader.GetOrigin()),
        "components": reader.GetNumberOfComponents(),
        "type": _TYPES.get(reader.GetPixelID()),
    }
    return header, reader.Execute() if request["voxels"] else None


def _main() -> None:
    out = sys.stdout.buffer
    for line in sys.stdin.buffer:
        try:
            header, image = _answer(json.loads(line))
        except Exception as error:  # whatever it is, the parent says it
            header, image = {"error": " ".join(str(error).split())[-300:]}, None
        # A view into the image, which has to stay as long.
        voxels = memoryview(b"" if image is None else SimpleITK.GetArrayViewFromImage(image)).cast("B")
        out.write(json.dumps({**header, "bytes": len(voxels)}).encode() + b"\n")
        out.write(voxels)
        out.flush()


_main()
