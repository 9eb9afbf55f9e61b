"""Layers, parameters and Sequential."""
import collections
import copy
import pickle

import numpy as np
import pytest

import nbcnn
from nbcnn.layers import Layer


def small(dtype=np.float32, seed=0, **options):
    return nbcnn.Sequential([("conv1", nbcnn.Conv2d(3, 4, 3, padding=1)), ("relu1", nbcnn.ReLU()), ("maxpool1", nbcnn.MaxPool2d(2)),
                             ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(4 * 3 * 3, 5))],
                            input_shape=(3, 6, 6), dtype=dtype, seed=seed, **options)


def test_names_positions_and_shapes():
    model = small()
    assert model[0] is model.conv1 and model[-1] is model.linear1 and len(model) == 5
    assert [(name, p.shape) for name, p in model.named_parameters()] == [
        ("conv1.weight", (4, 3, 3, 3)), ("conv1.bias", (4,)), ("linear1.weight", (5, 36)), ("linear1.bias", (5,))]
    assert model.shapes((3, 6, 6)) == {"conv1": (4, 6, 6), "relu1": (4, 6, 6), "maxpool1": (4, 3, 3),
                                       "flatten": (36,), "linear1": (5,)}
    assert list(nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(4, 2)]).state_dict()) == ["1.weight", "1.bias"]


def test_the_cifar10_network_has_the_published_size():
    model = nbcnn.models.cifar10_quick()
    # 145,578 parameters and 24.7 MFLOP forward: the figures of the tutorials' network, 2*5*5*C*O*H*W summed over its layers.
    assert sum(p.size for p in model.parameters()) == 145_578
    assert "145,578  24.71" in model.summary().splitlines()[-1]
    assert list(model.layers) == ["conv1", "maxpool1", "conv2", "maxpool2", "conv3", "maxpool3", "flatten", "linear1", "linear2"]
    relu = nbcnn.models.cifar10_quick_relu()
    assert [name for name, layer in relu.layers.items() if isinstance(layer, nbcnn.ReLU)] == ["relu1", "relu2", "relu3", "relu4"]
    assert list(relu.layers).index("relu4") == list(relu.layers).index("linear1") + 1


def test_initial_values():
    """uniform(-1/sqrt(fan_in), 1/sqrt(fan_in)), weights and biases alike, drawn in float64 whatever the dtype."""
    model, double = nbcnn.models.cifar10_quick(seed=3), nbcnn.models.cifar10_quick(seed=3, dtype=np.float64)
    bounds = {"conv1": 0.11547, "conv2": 0.035355, "conv3": 0.035355, "linear1": 0.03125, "linear2": 0.125}   # 1/sqrt(75), ...
    for (name, p), d in zip(model.named_parameters(), double.parameters(), strict=True):
        bound = bounds[name.split(".")[0]]
        assert (p.data == d.data.astype(np.float32)).all()
        assert np.abs(p.data).max() <= bound * 1.00001
        if p.size > 1000:       # the largest of 1,000 draws comes within a percent, the mean within 4 standard errors of 0
            assert np.abs(p.data).max() > 0.99 * bound and abs(p.data.mean()) < 4 * bound / (3 * p.size) ** 0.5
    assert (nbcnn.models.cifar10_quick(seed=4).conv1.weight.data != model.conv1.weight.data).any()


def test_parameters_lie_aligned_in_one_vector_with_zero_gaps():
    model = small()
    used = np.zeros(model.vector.data.size, bool)
    for p in model.parameters():
        assert p.flat.ctypes.data % 64 == 0 and p.flat_grad.ctypes.data % 64 == 0
        used[p.start:p.stop] = True
    assert used.sum() == sum(p.size for p in model.parameters()) and not model.vector.data[~used].any()
    model.conv1.weight.data[1, 2, 0, 1] = 7         # (O, C, KH, KW) seen, (O, KH, KW, C) stored
    assert model.conv1.weight.flat.reshape(4, 3, 3, 3)[1, 0, 1, 2] == 7


def test_grad_is_none_until_assigned():
    p = small().linear1.bias
    assert p.grad is None
    p.grad = np.arange(5)
    p.grad[:] *= 2
    assert p.grad.tolist() == p.flat_grad.tolist() == [0, 2, 4, 6, 8]
    p.grad = None
    assert p.grad is None
    with pytest.raises(ValueError, match=r"grad: expected shape \(5,\).* got shape \(4,\)"):
        p.grad = np.zeros(4)


def test_state_dict_round_trip():
    a, b = small(seed=1), small(seed=2, dtype=np.float64)
    state = a.state_dict()
    assert all(v.flags.c_contiguous and v.base is None for v in state.values()) and state["conv1.weight"].shape == (4, 3, 3, 3)
    b.load_state_dict(state)
    assert all((v == state[name]).all() and v.dtype == np.float64 for name, v in b.state_dict().items())


def test_load_state_dict_lists_every_fault_and_changes_nothing():
    model = small()
    before, state = model.state_dict(), model.state_dict()
    del state["conv1.bias"]
    state["conv9.bias"], state["linear1.weight"] = np.zeros(3), np.zeros((2, 2))
    state["conv1.weight"] = state["conv1.weight"] + 1
    with pytest.raises(ValueError, match=r"missing conv1.bias \(4,\); unexpected conv9.bias \(3,\); "
                                         r"linear1.weight expected shape \(5, 36\), got \(2, 2\)"):
        model.load_state_dict(state)
    assert all((v == before[name]).all() for name, v in model.state_dict().items())


def test_denormal_weights_become_zero():
    # A forward pass with them takes 200 times as long on some processors.
    tiny = float(np.finfo(np.float32).tiny)
    model = nbcnn.Sequential([("linear", nbcnn.Linear(2, 2, bias=False))])
    model.load_state_dict({"linear.weight": [[tiny, -tiny], [tiny / 2, -1e-45]]})
    assert model.linear.weight.numpy().tolist() == [[tiny, -tiny], [0, 0]]


@pytest.mark.parametrize("change, error, message", [
    (3, TypeError, "state: expected arrays by name, .*, got int"), ({1: 2}, TypeError, "state: expected names, got int"),
    ({"conv1.bias": np.array(["a"] * 4)}, TypeError, r"state\['conv1.bias'\]: expected an array of numbers, got ndarray of"),
    ({"linear1.bias": np.ones(5, complex)}, TypeError, r"state\['linear1.bias'\]: .* of dtype complex128"),
    ({"linear1.bias": np.ma.masked_array(np.ones(5), [True] * 5)}, TypeError, r"state\['linear1.bias'\]: .* without a mask"),
    ({"linear1.bias": np.broadcast_to(np.float32(1), 2**40)}, ValueError, r"state: linear1.bias expected shape \(5,\), got"),
])
def test_what_is_no_state_changes_nothing(change, error, message):
    model = small()
    before = model.state_dict()
    state = {name: value + 1 for name, value in before.items()} | change if isinstance(change, dict) else change
    with pytest.raises(error, match=f"^{message}"):
        model.load_state_dict(state)
    assert all((v == before[name]).all() for name, v in model.state_dict().items())


@pytest.mark.parametrize("options, error, message", [
    (dict(layers=3), TypeError, "layers: expected a list of layers"),
    (dict(layers=[("a", "b", "c")]), TypeError, "layers: expected"),
    (dict(classes=3), TypeError, "classes: expected a sequence of str, got 3"),
    (dict(classes=[1]), TypeError, "classes: expected a sequence of str, got int"),
    (dict(mean=["x"]), TypeError, "mean: expected an array of numbers"),
    (dict(std=0.5), ValueError, "std: expected finite numbers"),
    (dict(input_shape=3), TypeError, "input_shape: expected a tuple of ints, got 3"),
    (dict(dtype="x"), TypeError, "dtype: expected"),
    (dict(seed=2**128), ValueError, "seed: expected an int <= "),
])
def test_arguments_of_the_wrong_kind(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        nbcnn.Sequential(options.pop("layers", [nbcnn.ReLU()]), **options)


@pytest.mark.parametrize("value, error, message", [
    (np.ones(3), ValueError, r"expected shape \(4,\), that of the parameter, got shape \(3,\)"),
    (0.5, ValueError, "expected shape"),
    ("x", TypeError, "expected an array of numbers, got str"), (np.ones(4, complex), TypeError, "expected an array of numbers"),
])
def test_values_that_no_parameter_takes(value, error, message):
    parameter = small().conv1.bias
    before = parameter.numpy()
    with pytest.raises(error, match=f"^values: {message}"):
        parameter.set(value)
    with pytest.raises(error, match=f"^grad: {message}"):
        parameter.grad = value
    assert (parameter.numpy() == before).all() and parameter.grad is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_aligned_memory_of_its_own(copied):
    model = small(classes=list("abcde"), mean=(0.1, 0.2, 0.3))
    model.conv1.weight.data[...] = 1
    again = copied(model)
    assert again.classes == model.classes and again.mean == model.mean
    assert all((v == again.state_dict()[name]).all() for name, v in model.state_dict().items())
    assert again.vector.data.ctypes.data % 64 == 0 and not np.shares_memory(again.vector.data, model.vector.data)
    with pytest.raises(TypeError, match="with their model"):
        copy.deepcopy(model.conv1.weight)


def test_structure_round_trip():
    model = small(classes=list("abcde"))
    again = nbcnn.Sequential.from_structure(model.structure(), input_shape=(3, 6, 6), seed=0)
    assert again.structure() == model.structure() and again.summary() == model.summary()
    assert all((a.data == b.data).all() for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="unknown layer type 'os' for 'x'"):
        nbcnn.Sequential.from_structure([["x", "os", {}]])


def test_uint8_is_normalised_and_floats_are_not():
    model = small(dtype=np.float64, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 6, 6), dtype=np.uint8)
    floats = (images / 255 - np.reshape(model.mean, (3, 1, 1))) / np.reshape(model.std, (3, 1, 1))
    # The table rounds just as this line does.
    assert (model(images) == model(floats)).all() and (model(images) != model(images / 255)).any()


def test_an_image_s_logits_have_equal_bits_at_any_batch_size_and_position():
    model = nbcnn.models.cifar10_quick()
    images = np.random.default_rng(0).random((37, 3, 32, 32), dtype=np.float32)
    logits = model.predict(images)
    assert (model.predict(images, batch_size=5) == logits).all()
    assert (np.concatenate([model(images[n:n + 1]) for n in range(37)]) == logits).all()
    assert (model(images[::-1]) == logits[::-1]).all()
    assert model(images[:0]).shape == (0, 10)


def test_summary_without_input_shape():
    model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(12, 3)])
    assert model.summary().splitlines()[-1].split() == ["total", "39", "?"]


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: nbcnn.Sequential([]), ValueError, "layers: expected at least one layer"),
    (lambda: nbcnn.Sequential([3]), TypeError, "layers: expected layers .* got 3"),
    (lambda: nbcnn.Sequential([("a.b", nbcnn.ReLU())]), ValueError, "expected a name without dots .* got 'a.b'"),
    (lambda: nbcnn.Sequential([("vector", nbcnn.ReLU())]), ValueError, "the name 'vector' is taken"),
    (lambda: nbcnn.Sequential([("predict", nbcnn.ReLU())]), ValueError, "the name 'predict' is taken"),
    (lambda: nbcnn.Sequential([("a", nbcnn.ReLU()), ("a", nbcnn.ReLU())]), ValueError, "the name 'a' is taken"),
    (lambda: nbcnn.Sequential([nbcnn.ReLU()], dtype=np.int32), TypeError, "dtype: expected float32 or float64, got int32"),
    (lambda: nbcnn.Sequential([nbcnn.Conv2d(3, 4, 3), nbcnn.Linear(4, 2)], input_shape=(3, 8, 8)), ValueError,
     r"1: expected vectors \(N, 4\), got \(N, 4, 6, 6\); a Flatten layer"),
    (lambda: nbcnn.Sequential([nbcnn.Conv2d(3, 4, 3)], input_shape=(1, 8, 8)), ValueError,
     r"0: expected images \(N, 3, H, W\), got \(N, 1, 8, 8\)"),
    (lambda: nbcnn.Sequential([nbcnn.MaxPool2d(2, padding=2)], input_shape=(1, 8, 8)), ValueError, "0: .*at most half the window"),
    (lambda: nbcnn.Sequential([nbcnn.MaxPool2d(1000, stride=1, padding=500)], input_shape=(3, 1000, 1000)), ValueError,
     "0: expected windows that read at most 146,217,728 cells of a plane in all layers up to here, got 1,002,001,000,000"),
    (lambda: nbcnn.Sequential([nbcnn.AvgPool2d(65, stride=1, padding=32) for _ in range(99)], input_shape=(1, 100, 100)),
     ValueError, "3: expected windows that read at most 134,377,728 cells of a plane in all layers up to here, got 169,000,000"),
    (lambda: nbcnn.Sequential([nbcnn.ReLU() for _ in range(5001)]), ValueError, "layers: expected at most 5000, got more"),
    (lambda: nbcnn.Conv2d(3, 4, 2**31), ValueError, "kernel_size: expected an int <= 2147483647, got 2147483648"),
    (lambda: nbcnn.Linear(2**31, 4), ValueError, "in_features: expected an int <= 2147483647, got 2147483648"),
    (lambda: nbcnn.Conv2d(0, 4, 3), ValueError, "in_channels: expected an int >= 1, got 0"),
    (lambda: nbcnn.Conv2d(3, 4, 3, stride=0), ValueError, "stride: .* got 0"),
    (lambda: nbcnn.Linear(4, 2.5), TypeError, "out_features: expected an int >= 1, got 2.5"),
    (lambda: nbcnn.MaxPool2d("2"), TypeError, "kernel_size: .* got '2'"),
    (lambda: Layer().output_shape((3,)), TypeError, "a layer defines output_shape"),
    (lambda: small().conv7, AttributeError, "no layer 'conv7'; it has conv1, relu1, maxpool1, flatten, linear1"),
    (lambda: nbcnn.Linear(3, 2).weight.data, RuntimeError, "once its layer was called or is part of"),
])
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_layer_belongs_to_one_model():
    layer = nbcnn.Linear(3, 3)
    with pytest.raises(ValueError, match="already part of a model"):
        nbcnn.Sequential([layer, layer])
    nbcnn.Sequential([layer])
    with pytest.raises(ValueError, match="already part of a model"):
        nbcnn.Sequential([layer])


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_layers_by_name_in_a_mapping(kind):
    model = nbcnn.Sequential(kind(flatten=nbcnn.Flatten(), linear=nbcnn.Linear(4, 2)))
    assert list(model.layers) == ["flatten", "linear"]


def test_layers_one_by_one_as_in_pytorch():
    model, listed = nbcnn.Sequential(nbcnn.Flatten(), nbcnn.Linear(4, 2)), nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(4, 2)])
    assert model.structure() == listed.structure() and (model[1].weight.data == listed[1].weight.data).all()
    assert list(nbcnn.Sequential(nbcnn.Flatten()).layers) == ["0"]
    with pytest.raises(TypeError, match=r"^layers: expected layers .* got 3 as '1'$"):
        nbcnn.Sequential(nbcnn.Flatten(), 3)


def test_a_model_is_shown_as_in_pytorch():
    assert str(nbcnn.Sequential([("flatten", nbcnn.Flatten()), ("linear", nbcnn.Linear(4, 2))])) == """Sequential(
  (flatten): Flatten()
  (linear): Linear(in_features=4, out_features=2)
)"""


def test_train_and_eval_are_there():
    model = small()
    assert model.train() is model.train(False) is model.eval() is model


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_layer_can_be_called(dtype):
    """Alone it has the initial values of a model of it, and takes them along; within a model it has the model's."""
    layer, x = nbcnn.Conv2d(3, 4, 3, padding=1), np.random.default_rng(0).standard_normal((2, 3, 5, 6)).astype(dtype)
    y = layer(x)
    expected = nbcnn.Sequential([nbcnn.Conv2d(3, 4, 3, padding=1)], dtype=dtype)
    assert y.dtype == dtype and (y == expected(x)).all() and (layer(x) == y).all()
    layer.weight.set(2 * layer.weight.numpy())
    with pytest.raises(AssertionError):
        assert (layer(x) == y).all()
    model = nbcnn.Sequential([("conv", layer), ("again", nbcnn.Conv2d(4, 4, 1))], dtype=dtype)
    assert (model(x) == model.again(layer(x))).all()
    assert (model.conv.weight.data == 2 * expected[0].weight.data).all()
    with pytest.raises(ValueError, match="already part of a model"):
        nbcnn.Sequential([layer])
    other = nbcnn.Conv2d(3, 4, 3, padding=1)
    other.seed = 1
    assert (other(x) != y).any()


def test_layers_without_parameters_can_be_called():
    x = np.array([[-1.0, 2.0]])
    assert (nbcnn.ReLU()(x) == [[0, 2]]).all() and nbcnn.Tanh()(x).dtype == np.float64
    assert nbcnn.MaxPool2d(2)(np.zeros((1, 1, 4, 4), np.uint8)).shape == (1, 1, 2, 2)


def test_parameters_are_like_arrays():
    weight = nbcnn.Sequential([nbcnn.Linear(4, 2)])[0].weight
    assert (np.asarray(weight) == weight.data).all() and np.mean(weight) == weight.data.mean()
    assert np.asarray(weight, np.float64).dtype == np.float64 and (len(weight), weight.ndim, weight.dtype) == (2, 2, np.float32)
    weight[0, 1] = 7
    assert weight.data[0, 1] == 7 == weight[0][1] and [row.shape for row in weight] == [(4,), (4,)]
    np.asarray(weight)[...] = 0     # a copy
    assert weight[0, 1] == 7


def test_requires_grad_is_trainable():
    weight = nbcnn.Sequential([nbcnn.Linear(4, 2)])[0].weight
    assert weight.requires_grad is weight.trainable is True
    weight.requires_grad = False
    assert weight.trainable is False
    with pytest.raises(TypeError, match=r"^trainable: expected True or False, got array"):
        weight.requires_grad = np.ones(2)


class Holder:
    """A class as the tutorials write it, of something to hold."""

    def __init__(self, **held):
        vars(self).update(held)

    def forward(self, x):
        return self.model1(x)


class Forward(nbcnn.Layer):
    def __init__(self):
        self.model1 = nbcnn.Sequential([nbcnn.Flatten()])

    def forward(self, x):
        return self.model1(x)


class Network(nbcnn.Sequential):
    def __init__(self):
        super().__init__()


class Unmade(nbcnn.Sequential):
    def __init__(self):
        self.size = 3


@pytest.mark.parametrize("make, hint", [
    (lambda: Holder(model1=nbcnn.Sequential([nbcnn.Flatten()])), "got Holder; give the model that it holds, as holder.model1"),
    (lambda: nbcnn.EMA(nbcnn.Sequential([nbcnn.Linear(4, 2)]), 0.9),
     r"got EMA; in a block `with ema.weights\(\):` the averaged weights are in the model that it was made for$"),
    (lambda: Holder(a=nbcnn.Flatten(), b=nbcnn.Linear(4, 2)),
     r'got Holder; .* write nbcnn.Sequential\(\[\("a", Flatten\(\)\), \("b", Linear\(in_features=4, out_features=2\)\)\]\)'),
    (lambda: Holder, r"got <class '.*Holder'>; write Holder\(\) for an object of the class"),
    (lambda: nbcnn.Linear(4, 2), r"got Linear; write nbcnn.Sequential\(\[Linear\(in_features=4, out_features=2\)\]\)"),
    (lambda: "net", "got str$"), (lambda: None, "got NoneType$"),
])
def test_what_is_no_model_gets_a_line_that_says_what_to_write(make, hint, tmp_path):
    uses = [lambda model: nbcnn.BackpropScheduler(model, nbcnn.MSELoss()), lambda model: nbcnn.save(model, tmp_path / "file"),
            lambda model: nbcnn.evaluate(model, None), lambda model: nbcnn.fit(model, None)]
    for use in uses:
        with pytest.raises(TypeError, match=f"^model: expected a nbcnn.Sequential, {hint}"):
            use(make())
    assert not list(tmp_path.iterdir())


def test_classes_with_a_forward_are_told_what_to_write():
    for use in (lambda: Forward()(np.zeros((1, 4))), lambda: nbcnn.Sequential(Forward()).predict(np.zeros((1, 4)))):
        with pytest.raises(TypeError, match=r"Forward: a layer defines output_shape\(shape\), and no forward\(x\); a network of"):
            use()
    with pytest.raises(ValueError, match=r"at least one layer, got none; write nbcnn.Sequential\(\[layer, ...\]\)"):
        Network()
    with pytest.raises(TypeError, match=r"^Late: a network runs its layers in their order and calls no forward\(x\);"):
        class Late(nbcnn.Sequential):
            def forward(self, x):
                return x
    with pytest.raises(AttributeError, match=r"^the model has no '_forward': it was not made by nbcnn.Sequential"):
        Unmade().predict(np.zeros((1, 4)))


def test_what_would_be_set_and_never_run_is_refused():
    model = small()
    before = model.state_dict()
    with pytest.raises(TypeError, match=r"^linear2: a layer set as an attribute would never run; write nbcnn.Sequential"):
        model.linear2 = nbcnn.Linear(5, 2)
    with pytest.raises(TypeError, match=r"^weight: expected a Parameter, got ndarray; write layer.weight.set\(array\)"):
        model.conv1.weight = np.zeros((4, 3, 3, 3))
    with pytest.raises(TypeError, match=r"^params: .* got a model; write model.parameters\(\)"):
        nbcnn.SGD(model, lr=0.1)
    with pytest.raises(TypeError, match=r"^state: .* got a model, which needs no more loading"):
        model.load_state_dict(small(seed=1))
    with pytest.raises(AttributeError, match=r"no layer 'children'; write model.layers.values\(\)"):
        model.children()
    assert all((value == before[name]).all() for name, value in model.state_dict().items())


def test_data_of_a_parameter_can_be_assigned():
    bias = small().conv1.bias
    before = bias.numpy()
    bias.data -= 0.5
    assert (bias.data == before - np.float32(0.5)).all() and bias.mean() == bias.data.mean() and "array([" in repr(bias)
    bias.data = np.ones(4)
    assert (bias.data == 1).all()
    with pytest.raises(AttributeError, match="detach"):
        bias.detach()


def test_the_shape_of_the_first_images_trained_on_is_kept():
    model = nbcnn.Sequential(nbcnn.Conv2d(3, 4, 3), nbcnn.Flatten(), nbcnn.Linear(4 * 4 * 4, 2))
    images = np.zeros((2, 3, 6, 6), np.float32)
    model(images)
    assert model.input_shape is None and "?" in model.summary() and "4 x 4 x 4" in model.summary((3, 6, 6))
    nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()).forward(images, [0, 1])
    assert model.input_shape == (3, 6, 6) and "?" not in model.summary()


@pytest.mark.parametrize("shape, hint", [((6, 6, 3), r"images.transpose\(2, 0, 1\)\[None\]"),
                                         ((2, 6, 6, 3), r"images.transpose\(0, 3, 1, 2\)")])
def test_images_with_their_channels_last(shape, hint):
    with pytest.raises(ValueError, match=f"; axes are C, H, W: {hint}$"):
        small()(np.zeros(shape, np.uint8))


def test_classes_are_as_many_as_outputs():
    with pytest.raises(ValueError, match=r"classes: expected a name for each output, of shape \(2,\), got 3 names"):
        nbcnn.Sequential([nbcnn.Linear(4, 2)], input_shape=(4,), classes=["a", "b", "c"])


@pytest.mark.parametrize("kind", [nbcnn.ReLU, nbcnn.Tanh, nbcnn.Sigmoid, nbcnn.Flatten, nbcnn.GlobalAvgPool2d])
def test_layers_without_options_take_none(kind):
    with pytest.raises(TypeError):
        kind(inplace=True)
    assert repr(kind()) == f"{kind.__name__}()" and kind().arguments == {}
