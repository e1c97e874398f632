"""`lgq demo`: a page that shows a picture, its tokens, and what becomes of it when they are changed.

`pictures`, `measures`, `drawing`, `named` and `view` are plain functions; `page` alone needs gradio, which
`pip install 'lgq_hf[demo]'` installs.
"""
