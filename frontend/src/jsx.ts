// What the elements of the screens are made with: children as arguments take fewer letters than as a property.
export { createElement, Fragment } from "preact";
