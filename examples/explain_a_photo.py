"""What the network that comes with Opsin sees in a photo: a page, and one map by itself.

python examples/explain_a_photo.py photo.jpg    # without a photo: a cat that comes with scikit-image
"""

import sys

from PIL import Image
from skimage import data

import opsin

if len(sys.argv) > 1:
    photo = sys.argv[1]
else:
    photo = "cat.png"
    Image.fromarray(data.cat()).save(photo)

model = opsin.load()
images = opsin.read(photo, model)  # (1, 3, 224, 224) in [0, 1]

heat = opsin.grad_cam(model, images)  # for the predicted class; or target="tiger cat"
print("Grad-CAM is largest at", divmod(int(heat.values[0, 0].argmax()), heat.values.shape[3]))

# Without `techniques` the page holds every technique that is not expensive.
page = opsin.explain(model, images, techniques=["saliency", "grad_cam", "guided_backprop"]).save("report")
print(page)
