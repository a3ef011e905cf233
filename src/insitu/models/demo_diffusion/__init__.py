"""The demo's tiny sibling for diffusion: a pipeline that draws coloured shapes from text."""
