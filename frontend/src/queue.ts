// Work in small pieces, one after the other: a new list replaces what of the last one still waits.

/** Takes lists of wishes, in the order of their urgency, and gives each to `compute`; messages are read between two. */
export function queue<Wish>(compute: (wish: Wish) => void): (wishes: Wish[]) => void {
  const { port1, port2 } = new MessageChannel(); // a timer would wait four milliseconds each time
  let waiting: Wish[] = [];
  let running = false;
  port1.onmessage = () => {
    const wish = waiting.shift();
    running = wish !== undefined;
    if (wish === undefined) return;
    compute(wish);
    port2.postMessage(null);
  };
  return (wishes) => {
    waiting = [...wishes];
    if (!running) port2.postMessage(null);
    running = true;
  };
}
