"""A model as an HTTP server: a page for people, JSON for programs.

`application` has the routes. An upload passes `uploads`, which bounds its size, and `batcher`, which gives the network
the images of several requests at once. `served_model` holds the model and replaces it when the registry has a new one.
`heat_map` computes where the network looked. `server` runs all of it in a process.
"""
