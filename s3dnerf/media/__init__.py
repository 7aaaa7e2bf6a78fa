"""Reading and writing of images, audio and video. This file imports nothing: import the module you need."""
