'use strict';
// Where the packages are that the addon is built from and runs on: node-llama-cpp, which carries llama.cpp's source,
// and its packages of prebuilt ggml backends. Those are optional, so that any of them may be missing.

const fs = require('node:fs');
const path = require('node:path');
const { createRequire } = require('node:module');

/** node-llama-cpp's folder; its entry point is dist/index.js. */
const root = path.resolve(path.dirname(require.resolve('node-llama-cpp')), '..');

const platform = { linux: 'linux', darwin: 'mac', win32: 'win' }[process.platform] ?? process.platform;
const arch = process.arch === 'arm' ? 'armv7l' : process.arch;
/** What node-llama-cpp calls the backends of the CPU here. */
const cpuName = platform === 'mac' && arch === 'arm64' ? 'mac-arm64-metal' : `${platform}-${arch}`;

/** The folder of some prebuilt backends; '' if their package isn't installed, or there is none. */
function backendFolder(name) {
    try {
        // node-llama-cpp depends on these packages, not we, so they are found from its folder.
        const entry = createRequire(path.join(root, 'package.json')).resolve(`@node-llama-cpp/${name}`);
        const folder = path.resolve(path.dirname(entry), '..', 'bins', name);
        return fs.existsSync(folder) ? folder : '';
    } catch {
        return '';
    }
}

const backendFolders = {
    cpu: backendFolder(cpuName),
    cuda: backendFolder(`${platform}-${arch}-cuda`),
    vulkan: backendFolder(`${platform}-${arch}-vulkan`),
    metal: backendFolder(`${platform}-${arch}-metal`)
};

module.exports = {
    /** llama.cpp's source, a git bundle. */
    bundle: path.join(root, 'llama', 'gitRelease.bundle'),
    /** The folder of prebuilt backends by device; '' where there is none. */
    backendFolders,
    /** The folder whose ggml-base the addon is linked with; '' where ggml must be compiled. */
    prebuiltFolder: backendFolders.cpu,
    /** The package that `prebuiltFolder` is in, if there is one for this platform. */
    prebuiltPackage: `@node-llama-cpp/${cpuName}`
};
