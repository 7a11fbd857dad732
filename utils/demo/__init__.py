"""Faces and their expressions in photos, videos and from a camera."""

import os

# FFmpeg and OpenCV print remarks on files that fail; each failure becomes a UserError here. Both
# look up how much to print when OpenCV is imported.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
