"""Makes the SavedModel beside this file and inputs with its outputs (needs `pip install tensorflow-cpu`): `python make.py`."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent


def network() -> keras.Model:
    """Images (8, 8, 2) and a number to five classes and a sum, channels last as TensorFlow has them."""
    keras.utils.set_random_seed(1)
    image, scale = keras.Input((8, 8, 2), name="image"), keras.Input((1,), name="scale")
    hidden = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    hidden = keras.layers.Conv2D(8, 3, strides=2, padding="same")(hidden)
    hidden = keras.layers.LeakyReLU(0.2)(hidden)
    classes = keras.layers.Dense(5, name="classes")(keras.layers.Flatten()(hidden))
    total = keras.layers.Multiply(name="total")([keras.layers.Dense(1)(classes), scale])
    return keras.Model([image, scale], {"classes": classes, "total": total})


if __name__ == "__main__":
    model = network()

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 2), name="image"), tf.TensorSpec((None, 1), name="scale")])
    def serve(image: tf.Tensor, scale: tf.Tensor) -> dict[str, tf.Tensor]:
        return model([image, scale])

    module = tf.Module()
    module.model, module.serve = model, serve
    tf.saved_model.save(module, str(HERE / "network"), signatures=serve)
    random = np.random.default_rng(0)
    inputs = {
        "image": random.normal(size=(16, 8, 8, 2)).astype(np.float32),
        "scale": random.uniform(1, 2, (16, 1)).astype(np.float32),
    }
    outputs = {name: np.asarray(value) for name, value in model([inputs["image"], inputs["scale"]]).items()}
    np.savez(HERE / "reference.npz", **inputs, **outputs)
