"""Pictures and clips, however they are given, to the input of an encoder.

`load` gives upright 8-bit RGB of a path, bytes, an open file, an array or a Pillow image;
`load_clip` the frames of a video; `views` the pixels that `encode` takes. A `Room` bounds the
memory of decoding.
"""

from edgevlm.runtimes.loops.images.clips import load_clip as load_clip
from edgevlm.runtimes.loops.images.clips import prepare as prepare
from edgevlm.runtimes.loops.images.picking import picker_of as picker_of
from edgevlm.runtimes.loops.images.pictures import load as load
from edgevlm.runtimes.loops.images.room import Room as Room
from edgevlm.runtimes.loops.images.views import shrink as shrink
from edgevlm.runtimes.loops.images.views import views as views
