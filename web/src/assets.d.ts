declare module "*.wasm" {
  const url: string; // of the file, relative to the bundle
  export default url;
}
declare module "*.css";
