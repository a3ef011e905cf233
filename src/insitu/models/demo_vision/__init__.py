"""The image-text demo model: coloured shapes, drawn here, and questions about them.

from insitu.models.demo_vision import draw

model = VisionLanguageModel("demo")
with model.generate("<image>\nWhat colour is the circle?", images=[draw("circle", "red", "left")]):
    ids = model.generator.output
"""

from insitu.models.demo_vision.scenes import (
    COLOURS,
    PLACES,
    SHAPES,
    Scene,
    Thing,
    draw,
    draw_scene,
)

__all__ = ["COLOURS", "PLACES", "SHAPES", "Scene", "Thing", "draw", "draw_scene"]
