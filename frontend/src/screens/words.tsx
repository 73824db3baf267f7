// A position's way through the layers: what would be predicted if the model ended there.
import { useState } from "preact/hooks";
import { usePage } from "../context";
import { colour, css, inkOn } from "../colour";
import { Bars, Legend, spaces } from "../parts";

export function WordsInLayers() {
  const page = usePage();
  const lens = page.run.value.lens;
  const [chosen, setChosen] = useState<{ lens: typeof lens; at: [number, number] } | null>(null);
  if (!lens) return <section class="card"><p>This run has no predictions by layer: they come with a translation, or a continuation, of one of regard's own models.</p></section>;
  // an encoder predicts the token of a position, a decoder the one after it
  const which = ["translate", "complete"].includes(page.document.value.task ?? "") ? "next token" : "token at each position";
  const rows = page.run.value.sequences[lens.rows] ?? [];
  const colours = page.scale.value.weights;
  const shown = chosen?.lens === lens ? chosen!.at : [lens.layers.length - 1, 0]; // another text may be shorter
  const keys = (event: KeyboardEvent) => {
    const [across, down] = ({ ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] } as Record<string, [number, number]>)[event.key] ?? [0, 0];
    if (!across && !down) return;
    event.preventDefault();
    const within = (n: number, size: number) => Math.min(size - 1, Math.max(0, n));
    setChosen({ lens, at: [within(shown[0] + across, lens.layers.length), within(shown[1] + down, lens.top[0].length)] });
  };
  const detail = lens.top[shown[0]][shown[1]];
  return (
    <div class="two">
      <section class="card" data-tour="lens">
        <header><h2>Logit lens</h2><span class="note">the most probable {which} if the model ended after that layer{spaces(rows)}</span><span class="grow" /><Legend most={1} of="probability" /></header>
        <div class="lens" tabIndex={0} role="group" aria-label="predictions by layer and position; arrow keys move" onKeyDown={keys}><table>
          <thead><tr><th scope="col">input token</th>{lens.layers.map((layer) => <th key={layer} scope="col">{layer}</th>)}</tr></thead>
          <tbody>
            {lens.top[0].map((_, position) => (
              <tr key={position}>
                <th scope="row">{rows[position] ?? position}</th>
                {lens.layers.map((layer, l) => {
                  const [token, probability] = lens.top[l][position][0];
                  const back = colour(colours, probability, 1);
                  return (
                    <td key={layer} class={l === shown[0] && position === shown[1] ? "on" : ""} style={{ background: css(back), color: inkOn(back), cursor: "pointer" }} title={`${token}: ${probability.toFixed(3)}`} onPointerEnter={() => setChosen({ lens, at: [l, position] })} onClick={() => setChosen({ lens, at: [l, position] })}>{token}</td>
                  );
                })}
              </tr>
            ))}
          </tbody>
        </table></div>
      </section>
      <aside class="card facts" aria-live="polite">
        <h3>{rows[shown[1]] ?? shown[1]}</h3>
        <p class="note">after {lens.layers[shown[0]]}</p>
        <Bars of="token" heading="probability" most={1} bars={detail.map(([name, value]) => ({ name, value }))} />
      </aside>
    </div>
  );
}
