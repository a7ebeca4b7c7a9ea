'use strict';
// Where node-llama-cpp keeps what we build and run on: llama.cpp's source bundle and the prebuilt ggml backends.

const fs = require('node:fs');
const path = require('node:path');
const { createRequire } = require('node:module');

/** node-llama-cpp's folder; its entry point is dist/index.js. */
const root = path.resolve(path.dirname(require.resolve('node-llama-cpp')), '..');

/** The platform packages are dependencies of node-llama-cpp, so they are resolved from there. */
function platformFolder(name) {
    try {
        const entry = createRequire(path.join(root, 'package.json')).resolve(`@node-llama-cpp/${name}`);
        const folder = path.resolve(path.dirname(entry), '..', 'bins', name);
        return fs.existsSync(folder) ? folder : '';
    } catch {
        return '';
    }
}

const platform = { linux: 'linux', darwin: 'mac', win32: 'win' }[process.platform] ?? process.platform;
const arch = process.arch === 'arm' ? 'armv7l' : process.arch;

/** Folders of prebuilt backends by device, '' where the platform has none. */
const backendFolders = {
    cpu: platformFolder(platform === 'mac' && arch === 'arm64' ? 'mac-arm64-metal' : `${platform}-${arch}`),
    cuda: platformFolder(`${platform}-${arch}-cuda`),
    vulkan: platformFolder(`${platform}-${arch}-vulkan`),
    metal: platformFolder(`${platform}-${arch}-metal`)
};

module.exports = {
    bundle: path.join(root, 'llama', 'gitRelease.bundle'),
    /** The folder whose ggml-base the addon is linked with. */
    prebuiltFolder: backendFolders.cpu,
    backendFolders
};
