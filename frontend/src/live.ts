// Asks the page's own server.
import { useEffect } from "preact/hooks";
import type { Believe, Document } from "./document";
import type { State } from "./state";

export async function ask<T>(live: NonNullable<Document["live"]>, what: string, body: unknown): Promise<T> {
  const answer = await fetch(`api/${what}`, {
    method: "POST", body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${live.token}` },
  });
  const found = await answer.json().catch(() => ({ error: { message: `the server answered ${answer.status}` } }));
  if (!answer.ok) throw new Error(found.error?.message ?? found.error ?? `the server answered ${answer.status}`);
  return found as T;
}

/** Asks for the test of what is shown, once it is drawn; the server answers other questions first. */
export function useTest(page: State) {
  const run = page.run.value;
  const { live } = page.document.value;
  useEffect(() => {
    if (!live?.asks.includes("believe") || !run.to_test || page.tests.peek().has(run)) return;
    let timer = 0, left = false;
    const put = async () => {
      let found: Believe | string;
      try {
        const answer = await ask<Believe & { later?: boolean }>(live, "believe", { source: run.source, output: run.text, site: run.to_test, yields: true });
        if (answer.later) {
          if (!left) timer = window.setTimeout(put, 300);
          return;
        }
        found = answer;
      } catch (error) {
        found = error instanceof Error ? error.message : String(error);
      }
      page.tests.value = new Map(page.tests.peek()).set(run, found);
    };
    const frame = requestAnimationFrame(() => (timer = window.setTimeout(put)));
    return () => { left = true; cancelAnimationFrame(frame); clearTimeout(timer); };
  }, [run]);
}
