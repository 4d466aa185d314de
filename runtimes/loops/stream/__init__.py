"""A stream of frames without an end: questions are answered while frames keep coming.

`source` decodes in a thread and picks frames by time; they wait in a `ring`, where of a live source
the oldest are dropped. `parts` cuts the layout of a clip into an opening, frames and a closing.
`window` takes the oldest frames out of the cache and turns keys back. `stream` is what is done with
each frame and each question, and `events` what it says.
"""

from edgevlm.runtimes.loops.stream.live import LiveStream as LiveStream
from edgevlm.runtimes.loops.stream.request import StreamRequest as StreamRequest
from edgevlm.runtimes.loops.stream.stream import Stream as Stream
