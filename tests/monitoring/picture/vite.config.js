// The bundle is opened once, by a headless browser, from a local port: size and old browsers do not matter.
import { defineConfig } from 'vite';

export default defineConfig({
  base: './',
  define: { 'process.env.NODE_ENV': '"production"', global: 'globalThis' },
  esbuild: { jsx: 'automatic' },
  build: { target: 'esnext', chunkSizeWarningLimit: 10000, minify: false },
  logLevel: 'warn',
});
