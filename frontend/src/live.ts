// Asks the page's own server.
import type { Document } from "./document";

export async function ask<T>(live: NonNullable<Document["live"]>, what: string, body: unknown): Promise<T> {
  const answer = await fetch(`api/${what}`, {
    method: "POST", body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${live.token}` },
  });
  const found = await answer.json().catch(() => ({ error: { message: `the server answered ${answer.status}` } }));
  if (!answer.ok) throw new Error(found.error?.message ?? found.error ?? `the server answered ${answer.status}`);
  return found as T;
}
