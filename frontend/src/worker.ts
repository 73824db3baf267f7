// Computes the tiles of a long map beside the page.
import { Head } from "./attention";
import { queue } from "./queue";
import { Tensors } from "./safetensors";
import type { Wish } from "./tiles";

let tensors: Tensors | null = null;
let heads = new Map<string, Head>();
let last = ""; // asked for again where the answer crossed the question

const ask = queue<Wish>((wish) => {
  if (!tensors || wish.name === last) return;
  last = wish.name;
  const { prefix, head, how } = wish;
  const name = `${prefix}/${head}`;
  let one = heads.get(name);
  if (!one) heads.set(name, (one = new Head(tensors, prefix, head, how.heads, how.queries, how.keys, how)));
  const cells = one.largest(...wish.part, wish.without);
  (postMessage as (message: unknown, transfer: Transferable[]) => void)({ wish, cells }, [cells.buffer]);
});

onmessage = (event: MessageEvent<{ buffer: ArrayBuffer } | { wishes: Wish[] }>) => {
  if ("wishes" in event.data) return ask(event.data.wishes);
  tensors = new Tensors(event.data.buffer);
  heads = new Map();
};
