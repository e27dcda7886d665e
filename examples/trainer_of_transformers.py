"""A language model of Hugging Face, trained by local losses in the Trainer.

    python examples/trainer_of_transformers.py

Without localprop it is the same file with `transformers.Trainer` and without the last argument.
"""

import tempfile

import torch
import transformers

import localprop as lp
from localprop.hosts.transformers import LocalTrainer

TEXT = """The network is cut into modules, each module has a loss of its own, and gradients travel
only as far back as the chosen method lets them."""
LENGTH = 16

letters = sorted(set(TEXT))
ids = torch.tensor([letters.index(letter) for letter in TEXT])
windows = ids.unfold(0, LENGTH, 4)
rows = [{"input_ids": window, "labels": window} for window in windows]

torch.manual_seed(0)
config = transformers.GPT2Config(
    vocab_size=len(letters), n_positions=LENGTH, n_embd=32, n_layer=4, n_head=4
)
trainer = LocalTrainer(
    transformers.GPT2LMHeadModel(config),
    transformers.TrainingArguments(
        tempfile.mkdtemp(),
        num_train_epochs=10,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=0.01,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    ),
    train_dataset=rows[:28],
    eval_dataset=rows[28:],
    rule=lp.backlink(layers=1),
    modules=2,
)
print("loss before", round(trainer.evaluate()["eval_loss"], 2))
trainer.train()
print("loss after", round(trainer.evaluate()["eval_loss"], 2))
