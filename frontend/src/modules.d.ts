declare module "*.css" {
  const text: string;
  export default text;
}
declare module "htmx.org/dist/htmx.esm.js" {
  import htmx from "htmx.org";
  export default htmx;
}
declare module "idiomorph/dist/idiomorph.esm.js" {
  export const Idiomorph: { morph(old: Element, content: HTMLCollection, options: object): Node[] };
}
