"""Chest radiographs made from nothing: a procedural phantom for the demo and the tests.

The torso is a set of simple solids in patient coordinates, in cm: ``x`` to the patient's left (the image's right),
``y`` down from the top of the rib cage, ``z`` towards the front. Their thickness along each ray is summed, attenuated
by Beer-Lambert, and taken through scatter, noise, blur and a display curve, as a real detector and viewer would::

    Anatomy -> thickness of tissue, air and bone -> ray sum -> exposure -> display (uint8)

The two findings share one anatomy per seed. Everything that looks at the whole image (scatter, contrast processing,
windowing) looks at the healthy chest, so opacities change the pixels they cover and no others. Air content, habitus and
exposure vary more between patients than a finding changes the grey level, and a finding is made of foci a few
millimetres wide: 64 pixels of the whole chest say much less about it than the image does. A shortcut is there only
where it is planted (``marker``), so that what finds shortcuts can be tested.
These images teach a network nothing about patients. They exist so that the software can be tried without any.
"""

from xray.phantom.files import encode_dicom, encode_jpeg, encode_png
from xray.phantom.folder import MANIFEST_HEADER, MANIFEST_NAME, Format, generate_set, write_folder
from xray.phantom.radiograph import FINDINGS, PLANTED_LETTER, SOURCE, Radiograph, generate_radiograph

__all__ = [
    "FINDINGS",
    "MANIFEST_HEADER",
    "MANIFEST_NAME",
    "PLANTED_LETTER",
    "SOURCE",
    "Format",
    "Radiograph",
    "encode_dicom",
    "encode_jpeg",
    "encode_png",
    "generate_radiograph",
    "generate_set",
    "write_folder",
]
