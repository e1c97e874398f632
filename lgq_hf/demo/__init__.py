"""`lgq demo`: a page that shows an image, its tokens, and what becomes of it when they are changed.

`view` and `drawing` are plain functions; `page` alone needs gradio, which the extra `demo` installs.
"""
