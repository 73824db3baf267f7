import { createContext } from "preact";
import { useContext } from "preact/hooks";
import type { State } from "./state";

export const StateContext = createContext<State>(null as unknown as State);

/** The state of the page that a component stands on. */
export const usePage = (): State => useContext(StateContext);
