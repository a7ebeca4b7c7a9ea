"""Writes the parquet files that test/calibration/chat.test.ts reads, by another implementation than the one that reads them.

From this folder (pip install pyarrow):

    python parquet.py ../calibration
"""

import sys

import pyarrow
import pyarrow.parquet

folder = sys.argv[1]


def write(name, compression, columns, **options):
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, f"{folder}/{name}.parquet", compression=compression, **options)




questions = ["What is the capital of France?", "Is 7 prime?", "Say ☃."]
answers = ["Paris.", "Yes, it is.", "☃"]
roles = [("role", "content"), ("user", "assistant")], [("from", "value"), ("human", "gpt")]
chats = [
    [[{role: names[0], text: question}, {role: names[1], text: answer}] for question, answer in zip(questions, answers)]
    for (role, text), names in roles
]

# three groups of rows; columns of other types beside it
texts = {"id": [1, 2, 3], "text": questions, "body": answers, "score": [0.5, None, 1.5]}
write("texts", "snappy", texts, row_group_size=1)
write("messages", "zstd", {"id": ["a", "b", "c"], "messages": chats[0]}, row_group_size=2)
write("conversations", "gzip", {"conversations": chats[1], "nested": [{"list": chat} for chat in chats[0]]})
write("latin1", "none", {"text": pyarrow.array([b"caf\xe9"]).view(pyarrow.string()), "none": [None]})
# more text than is read: 257 MiB of one letter
write("large", "zstd", {"text": ["a" * 2**20] * 257}, use_dictionary=False)
