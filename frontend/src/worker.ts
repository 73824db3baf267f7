// Computes windows of a long map beside the page.
import { Head, type How } from "./attention";
import { Tensors } from "./safetensors";

let tensors: Tensors | null = null;
const heads = new Map<string, Head>();

onmessage = (event: MessageEvent) => {
  const ask = event.data;
  if (ask.buffer) {
    tensors = new Tensors(ask.buffer);
    return;
  }
  if (!tensors) return;
  const { id, prefix, head, how, box, cells } = ask as {
    id: number; prefix: string; head: number; how: How & { heads: number; queries: number; keys: number };
    box: [number, number, number, number]; cells: [number, number];
  };
  const name = `${prefix}/${head}`;
  let one = heads.get(name);
  if (!one) heads.set(name, (one = new Head(tensors, prefix, head, how.heads, how.queries, how.keys, how)));
  const found = one.window(...box, ...cells);
  (postMessage as (message: unknown, transfer: Transferable[]) => void)({ id, cells: found }, [found.buffer]);
};
