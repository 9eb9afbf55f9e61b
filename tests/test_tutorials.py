"""The programs of the tutorials, line by line: nothing but names is changed, and what a scheduler does is asked of it.

In PyTorch a loss knows how it came about, and `loss.backward()` does the rest. Here `step`, a BackpropScheduler, holds network and
loss: `loss = step.forward(imgs, targets)` stands for `outputs = net(imgs)` and `loss = criterion(outputs, targets)`.
"""
import numpy as np
import pytest

import nbcnn
from nbcnn import CrossEntropyLoss, Flatten, L1Loss, Linear, MSELoss, Sequential
from nbcnn.datasets import Dataset, Loader

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def cifar10():
    """Few images, the brighter the higher their class."""
    labels = np.arange(128) % 10
    noise = np.random.default_rng(0).integers(0, 10, (128, 3, 32, 32))
    return Dataset((25 * labels[:, None, None, None] + noise).astype(np.uint8), labels, CLASSES, "cifar10")


def test_losses():
    """The first program: L1, MSE and cross-entropy of three numbers."""
    inputs = np.array([1, 2, 3], dtype=np.float32)
    targets = np.array([1, 2, 5], dtype=np.float32)

    inputs = np.reshape(inputs, (1, 1, 1, 3))
    targets = np.reshape(targets, (1, 1, 1, 3))

    loss = L1Loss(reduction="sum")
    result = loss(inputs, targets)

    loss_mse = MSELoss()
    result_mse = loss_mse(inputs, targets)

    print(result)
    print(result_mse)

    x = np.array([0.1, 0.2, 0.3])
    y = np.array([1])
    x = np.reshape(x, (1, 3))
    loss_cross = CrossEntropyLoss()
    result_cross = loss_cross(x, y)
    print(result_cross)

    # By hand: |3 - 5| = 2; 2^2 / 3; ln(e^0.1 + e^0.2 + e^0.3) - 0.2, which the tutorial prints as 1.1019.
    assert (result, result_mse) == (2, pytest.approx(4 / 3)) and result_cross.item() == pytest.approx(1.1019, abs=5e-5)


def test_bce():
    """Of logits, for two labels; `backward` says where it is."""
    loss = nbcnn.BCEWithLogitsLoss()
    output = loss(np.array([0.0, 2.0]), np.array([1.0, 0.0]))
    assert output.item() == pytest.approx((np.log(2) + np.log(1 + np.e ** 2)) / 2)
    with pytest.raises(AttributeError, match=r"a loss is a number and has no backward; write step.backward\(\) of the nbcnn.Back"):
        output.backward()


def make_tudui():
    """The network of the tutorials, there a class whose forward calls self.model1."""
    model1 = Sequential(
        nbcnn.Conv2d(3, 32, 5, padding=2),
        nbcnn.MaxPool2d(2),
        nbcnn.Conv2d(32, 32, 5, padding=2),
        nbcnn.MaxPool2d(2),
        nbcnn.Conv2d(32, 64, 5, padding=2),
        nbcnn.MaxPool2d(2),
        Flatten(),
        Linear(1024, 64),
        Linear(64, 10),
    )
    return model1


def test_sequential():
    """The network is printed and given a batch of ones."""
    tudui = make_tudui()
    print(tudui)
    input = np.ones((64, 3, 32, 32), np.float32)
    output = tudui(input)
    print(output.shape)
    assert output.shape == (64, 10)


def test_loss_of_a_network(cifar10):
    """The second program: a loss, and gradients where there were none."""
    dataloader = Loader(cifar10, batch_size=1, shuffle=False)
    loss = nbcnn.CrossEntropyLoss()
    tudui = make_tudui()
    step = nbcnn.BackpropScheduler(tudui, loss)
    count = 0
    for data in dataloader:
        imgs, targets = data
        outputs = tudui(imgs)
        result_loss = step.forward(imgs, targets)
        assert tudui[0].weight.grad is None and result_loss.item() == pytest.approx(loss(outputs, targets).item(), rel=1e-6)
        step.backward()
        print("ok")
        break
    assert (np.abs(tudui[0].weight.grad) > 0).any() and count == 0


def test_optimizer(cifar10):
    """The third program: epochs of zero_grad, backward and step, and the sum of the losses."""
    dataloader = Loader(cifar10, batch_size=64)
    loss = nbcnn.CrossEntropyLoss()
    tudui = make_tudui()
    step = nbcnn.BackpropScheduler(tudui, loss)
    optim = nbcnn.SGD(tudui.parameters(), lr=0.01)
    losses = []
    for epoch in range(3):      # noqa: B007
        running_loss = 0.0
        for data in dataloader:
            imgs, targets = data
            result_loss = step.forward(imgs, targets)
            optim.zero_grad()
            step.backward()
            optim.step()
            running_loss = running_loss + result_loss
        print(running_loss)
        losses.append(running_loss)
    assert losses[2] < losses[0]


def test_whole_training(cifar10, tmp_path, capsys):
    """The fourth and fifth program: lengths, training and test with accuracy, a file for each epoch, and an image to classify."""
    train_data, test_data = cifar10, cifar10[:50]

    train_data_size = len(train_data)
    test_data_size = len(test_data)
    print("length of the training data: {}".format(train_data_size))        # noqa: UP032
    img, target = test_data[0]
    print(img.shape, test_data.classes[target])

    train_dataloader = Loader(train_data, batch_size=64)
    test_dataloader = Loader(test_data, batch_size=64)

    tudui = make_tudui()
    loss_fn = nbcnn.CrossEntropyLoss()
    step = nbcnn.BackpropScheduler(tudui, loss_fn)
    learning_rate = 1e-2
    optimizer = nbcnn.SGD(tudui.parameters(), lr=learning_rate)

    total_train_step = 0
    total_test_step = 0
    epoch = 2

    for i in range(epoch):
        print(f"------- epoch {i + 1} begins -------")

        tudui.train()
        for data in train_dataloader:
            imgs, targets = data
            loss = step.forward(imgs, targets)

            optimizer.zero_grad()
            step.backward()
            optimizer.step()

            total_train_step = total_train_step + 1
            if total_train_step % 2 == 0:
                print(f"step {total_train_step}, loss: {loss.item()}")

        tudui.eval()
        total_test_loss = 0
        total_accuracy = 0
        for data in test_dataloader:
            imgs, targets = data
            outputs = tudui(imgs)
            loss = loss_fn(outputs, targets)
            total_test_loss = total_test_loss + loss.item()
            accuracy = (outputs.argmax(1) == targets).sum()
            total_accuracy = total_accuracy + accuracy

        print(f"loss on all of the test set: {total_test_loss}")
        print(f"accuracy on all of the test set: {total_accuracy / test_data_size}")
        total_test_step = total_test_step + 1

        nbcnn.save(tudui, tmp_path / f"tudui_{i}.safetensors")

    model = nbcnn.load(tmp_path / "tudui_1.safetensors")
    model.eval()
    output = model(img[None])
    assert output.argmax(1) in range(10) and (output == tudui(img[None])).all() and total_test_step == 2
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["length of the training data: 128", "(3, 32, 32) airplane"] and len(out) == 2 + 2 * 4


def test_batches_and_data_sets_behave_as_in_the_tutorials(cifar10):
    """len, positions, slices, and a new order in every loop."""
    assert len(Loader(cifar10, 60)) == 3 and len(cifar10) == 128
    image, label = cifar10[-1]
    assert label == 7 and isinstance(label, int) and (image == cifar10.images[127]).all()
    part = cifar10[10:20]
    assert isinstance(part, Dataset) and len(part) == 10 and part.classes == CLASSES and len(cifar10[np.array([3, 1])]) == 2
    with pytest.raises(IndexError, match=r"^index: expected positions of 128 images, got 128$"):
        cifar10[128]
    assert sum(label for _, label in cifar10) == cifar10.labels.sum()
    loader, again = (Loader(cifar10, 128, seed=3) for _ in range(2))
    first, second = next(iter(loader))[1], next(iter(loader))[1]
    assert (first == next(again.epoch(0))[1]).all() and (second == next(again.epoch(1))[1]).all() and (first != second).any()
