"""The quickstart as a notebook: train, plot, sample from the export, ask the critic.

Cells begin with `# %%`, as Jupyter, VS Code and PyCharm read them. Run from the command line it
does the same: `python docs/examples/quickstart_notebook.py`. STEPS=60 takes some minutes on two
cores; fewer show the parts in one.
"""

# %% Train. The call returns when the run has ended; Ctrl-C stops it after the current step.
import os

import sppo_ray as sr

STEPS = int(os.environ.get("STEPS", "60"))
rewards = []
run = sr.train(
    "quickstart",
    run_dir=os.environ.get("RUN_DIR"),
    loop={"steps": STEPS},
    callbacks=[lambda row: rewards.append(row["reward/mean"])],
)
print(run)

# %% Plot. Tables are Arrow tables: run.metrics.to_pandas() gives a data frame.
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
left.plot(run.metrics["step"], run.metrics["reward/mean"])
left.set(xlabel="step", ylabel="mean reward")
right.plot(run.curve["step"], run.curve["eval/accuracy"], marker="o")
right.fill_between(
    run.curve["step"], run.curve["eval/accuracy_low"], run.curve["eval/accuracy_high"], alpha=0.2
)
right.set(xlabel="step", ylabel="held-out accuracy", ylim=(0, 1))
figure.savefig(run.path / "notebook.png")
assert rewards == run.metrics["reward/mean"].to_pylist()

# %% The samples of the last step.
print(run.trajectories(columns=["prompt_text", "response_text", "reward", "value"]).slice(0, 5).to_pylist())

# %% Sample from the export with Transformers. It is a plain checkpoint.
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(run.policy)
model = AutoModelForCausalLM.from_pretrained(run.policy)
prompts = ["a7b5c9=", "a1b2=", "a9b9c9d9="]
messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
texts = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
by_transformers = []
for text in texts:
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    output = model.generate(**inputs, max_new_tokens=80, do_sample=False)
    by_transformers.append(
        tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    )
print(dict(zip(prompts, by_transformers, strict=True)))

# %% Sample with vLLM, greedily too: the same responses. The engine runs in this process, because a
# second one would begin by running these cells again. It takes a fifth of the memory.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
from vllm import LLM, SamplingParams

limits = {"max_model_len": 120, "gpu_memory_utilization": 0.2}
engine = LLM(str(run.policy), dtype="float32", enforce_eager=True, **limits)
outputs = engine.generate(texts, SamplingParams(temperature=0, max_tokens=80))
by_vllm = [output.outputs[0].text for output in outputs]
assert by_vllm == by_transformers, (by_vllm, by_transformers)

# %% The critic: the probability that the policy solves a prompt, from the prompt alone.
values = run.values(prompts)
print({prompt: f"{value:.2f}" for prompt, value in zip(prompts, values, strict=True)})
assert all(0 <= value <= 1 for value in values)
